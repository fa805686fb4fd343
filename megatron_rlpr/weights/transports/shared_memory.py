"""Buckets in memory that processes of one host map: written once, copied by every reader.

Two slots, the halves of a bucket, lie in an anonymous memory file, which no name leads to: it is passed to the readers
through a local socket and is gone with the last process that maps it, however these end (and /dev/shm, often small in
containers, is not asked for room). The same sockets carry the turns. The sender says "slot s is filled"; a reader
answers with one byte when it has copied the slot out, and a slot is filled again when every living reader has. A
process that dies closes its socket, which the other side sees at once; one that stops is given up after `timeout_s`.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_rlpr.weights.transports.framing import Filled, StreamAssembler, StreamCutter
from megatron_rlpr.weights.transports.interface import Ended, NamedTensor, WeightTransportError

_SLOTS = 2
_HELLO = struct.Struct("=I")  # number of the reader
_FILLED = struct.Struct("=Qqqq")  # slot, and how it was filled
_PEER = struct.Struct("=iii")  # SO_PEERCRED: process, user, group
_COPIED = b"\x01"
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class SharedMemoryTransport:
    """Reaches the processes of this user on this host. Nothing is kept between hand-overs."""

    bucket_nbytes: int
    timeout_s: float
    """Longest time without a sign of life after which a reader is lost."""

    @contextmanager
    def sender(self, readers: Sequence[str]) -> Iterator[SharedMemorySender]:
        """See `WeightTransport`. The memory is given back when the context ends; OSError when there is none left."""
        with ExitStack() as stack:
            yield SharedMemorySender(stack, len(readers), self.bucket_nbytes // _SLOTS, self.timeout_s)


@dataclass(frozen=True)
class SharedMemorySource:
    """See `WeightSource`."""

    socket_name: str
    first_reader: int
    slot_nbytes: int
    timeout_s: float

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """CPU tensors in memory of their own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
            sender.settimeout(self.timeout_s)
            try:
                yield from self._received(sender, self.first_reader + worker)
            except OSError as error:
                raise WeightTransportError(f"the sender of the weights is not there any more: {error}") from error

    def _received(self, sender: socket.socket, reader: int) -> Iterator[NamedTensor]:
        sender.connect(_address(self.socket_name))
        _check_peer(sender)
        sender.sendall(_HELLO.pack(reader))
        slots = _map_for_reading(sender, self.slot_nbytes)
        assembler = StreamAssembler()
        while True:
            message = sender.recv(_FILLED.size)
            if not message:
                raise WeightTransportError("the stream of weights broke off: its sender gave up or died")
            slot, *sizes = _FILLED.unpack(message)
            filled = Filled(*sizes)
            yield from assembler.tensors(slots[slot], filled)
            sender.sendall(_COPIED)
            if filled.last:
                return


@dataclass
class _Reader:
    """The sender's view of one reader: slots it was told of and has copied, and when it was last heard."""

    connection: socket.socket
    told: int = 0
    copied: int = 0
    heard: float = field(default_factory=time.monotonic)


class SharedMemorySender:
    """See `WeightSender`."""

    def __init__(self, stack: ExitStack, readers: int, slot_nbytes: int, timeout_s: float) -> None:
        """stack: closes the sockets and the memory when it ends."""
        self._stack = stack
        self._readers = readers
        self._slot_nbytes = slot_nbytes
        self._timeout_s = timeout_s
        self._socket_name = f"megatron_rlpr_weights_{uuid.uuid4().hex}"
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self._listener.bind(_address(self._socket_name))
        self._listener.listen(self._readers)
        self._file = os.memfd_create(self._socket_name, os.MFD_CLOEXEC)
        stack.callback(os.close, self._file)
        # Without it, memory that is not there is a SIGBUS later.
        os.posix_fallocate(self._file, 0, _SLOTS * slot_nbytes)
        self._slots = _as_slots(mmap.mmap(self._file, _SLOTS * slot_nbytes), slot_nbytes)
        stack.callback(self._slots.clear)
        self._present: dict[int, _Reader] = {}
        self._lost: dict[int, str] = {}
        self._looked = time.monotonic()

    def source(self, first_reader: int) -> SharedMemorySource:
        """See `WeightSender`."""
        # While the sender waits for another reader until it gives that one up, this reader must not lose patience.
        return SharedMemorySource(self._socket_name, first_reader, self._slot_nbytes, 3 * self._timeout_s)

    def send(self, tensors: Iterable[NamedTensor], ended: Ended) -> dict[int, str]:
        """See `WeightSender`. A lost reader is no loss to the others."""
        self._admit(ended)
        cutter = StreamCutter(tensors)
        sent = 0
        while self._present:
            self._look(ended)
            self._until_copied(sent - _SLOTS + 1, ended)
            filled = cutter.fill(self._slots[sent % _SLOTS])
            self._tell(sent % _SLOTS, filled)
            sent += 1
            if filled.last:
                self._until_copied(sent, ended)
                break
        return self._lost

    def _admit(self, ended: Ended) -> None:
        """Wait until every reader is there or lost."""
        deadline = time.monotonic() + self._timeout_s
        while missing := set(range(self._readers)) - self._present.keys() - self._lost.keys():
            if select.select([self._listener], [], [], _LOOK_EVERY_S)[0]:
                self._accept(missing)
                continue
            self._look(ended)
            if time.monotonic() > deadline:
                self._lost |= dict.fromkeys(missing, f"did not come for its weights for {self._timeout_s:g} s")
        self._listener.close()

    def _accept(self, missing: set[int]) -> None:
        connection = self._stack.enter_context(self._listener.accept()[0])
        connection.settimeout(self._timeout_s)
        try:
            _check_peer(connection)
            (number,) = _HELLO.unpack(connection.recv(_HELLO.size))
            if number in missing:
                socket.send_fds(connection, [b"memory"], [self._file])
                self._present[number] = _Reader(connection)
        except (OSError, struct.error):
            connection.close()  # it went away before it said who it was: its place stays empty

    def _until_copied(self, slots: int, ended: Ended) -> None:
        """Wait until every reader has copied out so many slots, or is lost."""
        while waiting := {r.connection.fileno(): number for number, r in self._present.items() if r.copied < slots}:
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(1000 * _LOOK_EVERY_S):
                self._hear(waiting[descriptor])
            self._look(ended)
            for number in waiting.values():
                if number in self._present and time.monotonic() - self._present[number].heard > self._timeout_s:
                    self._lose(number, f"took no weights for {self._timeout_s:g} s")

    def _hear(self, number: int) -> None:
        reader = self._present[number]
        try:
            answer = reader.connection.recv(len(_COPIED))
        except OSError:
            answer = b""
        if answer != _COPIED:
            self._lose(number, "went away while it took its weights")
            return
        reader.copied += 1
        reader.heard = time.monotonic()

    def _tell(self, slot: int, filled: Filled) -> None:
        for number, reader in list(self._present.items()):
            if reader.copied == reader.told:
                reader.heard = time.monotonic()  # it had nothing to do
            reader.told += 1
            try:
                reader.connection.sendall(_FILLED.pack(slot, *filled))
            except OSError:
                self._lose(number, "went away while it took its weights")

    def _look(self, ended: Ended) -> None:
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        for number in ended():
            if number not in self._lost:
                self._lose(number, "ended its update before it had all weights")
        self._looked = time.monotonic()

    def _lose(self, number: int, reason: str) -> None:
        self._lost[number] = reason
        if number in self._present:
            self._present.pop(number).connection.close()


def this_host() -> str:
    """Equal in processes that can meet in shared memory: same running kernel, same network namespace, same user.

    The namespace is that of the sockets; two containers of one machine differ in it.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/net')} {os.getuid()}"


def _address(name: str) -> bytes:
    """In Linux's abstract namespace, where a name ends with its socket."""
    return b"\0" + name.encode("ascii")


def _check_peer(connection: socket.socket) -> None:
    """PermissionError unless the other side belongs to this user: abstract sockets know no permissions."""
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if user != os.getuid():
        raise PermissionError(f"a process of user {user} is at the other end")


def _map_for_reading(sender: socket.socket, slot_nbytes: int) -> list[torch.Tensor]:
    _, files, _, _ = socket.recv_fds(sender, 16, 1)
    if not files:
        raise WeightTransportError("the sender of the weights gave up before it sent any")
    try:
        memory = mmap.mmap(files[0], _SLOTS * slot_nbytes, prot=mmap.PROT_READ)
    finally:
        os.close(files[0])
    return _as_slots(memory, slot_nbytes)


def _as_slots(memory: mmap.mmap, slot_nbytes: int) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a reader's pages are read-only, and nobody writes to them
        whole = torch.frombuffer(memory, dtype=torch.uint8)
    return list(whole.split(slot_nbytes))
