"""Buckets broadcast over a process group of its own: a rank of the trainer, and the workers that it sends to.

The same code sends over gloo on CPU and over NCCL on CUDA, within a host and across nodes. Every member has two
buffers, the halves of a bucket: while one is broadcast the sender fills the other, and the readers take theirs apart.
A broadcast is of the whole buffer, whose last bytes say how it was filled, so that a reader can begin to receive
without asking. The group is kept as long as its members are the same processes. A lost member breaks it for all: they
are told, nobody uses what has come, and the next hand-over makes a new group.
"""

from __future__ import annotations

import socket
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from megatron_rlpr.weights.transports.framing import Filled, StreamAssembler, StreamCutter
from megatron_rlpr.weights.transports.interface import Ended, NamedTensor, WeightTransportError
from megatron_rlpr.weights.transports.process_group import ProcessGroup

_BUFFERS = 2
_FILLED = struct.Struct("=qqq")  # at the end of a buffer
_joined: dict[str, ProcessGroup] = {}
"""The group this process, a worker of an engine, is a member of; by its name, one at most."""


class CollectiveTransport:
    """Reaches every process that can reach `host`."""

    def __init__(self, host: str, bucket_nbytes: int, timeout_s: float) -> None:
        """host: this host's address as the engines' nodes see it. timeout_s: longest time a bucket may take."""
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        self._last = CollectiveSource(host, bucket_nbytes, timeout_s, backend)
        self._store: Any = None
        self._members: list[str] = []
        self._group: ProcessGroup | None = None

    @contextmanager
    def sender(self, readers: Sequence[str]) -> Iterator[CollectiveSender]:
        """See `WeightTransport`. The last hand-over's group goes on if it is whole and of these very readers."""
        if self._store is None:
            patience = timedelta(seconds=self._last.timeout_s)
            self._store = TCPStore(self._last.host, 0, is_master=True, wait_for_workers=False, timeout=patience)
        if self._group is None or self._group.failed or self._members != list(readers):
            if self._group is not None:
                self._group.leave()
            self._group, self._members = None, list(readers)
            here = {"port": self._store.port, "group": uuid.uuid4().hex, "size": len(readers) + 1}
            self._last = replace(self._last, **here)
        sender = CollectiveSender(self._last, self._store, self._group)
        try:
            yield sender
        except BaseException as error:
            sender.give_up(f"the trainer gave up: {error}")
            raise
        finally:
            self._group = sender.group


@dataclass(frozen=True)
class CollectiveSource:
    """See `WeightSource`. group, size: of all members; the store that they meet at listens on `port`."""

    host: str
    bucket_nbytes: int
    timeout_s: float
    backend: str
    port: int = 0
    group: str = ""
    size: int = 0
    first_reader: int = 0

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """Tensors on the CPU, or with NCCL on this process's current CUDA device, in memory of their own."""
        group = self._join(1 + self.first_reader + worker)
        complete = False
        try:
            yield from self._received(group)
            complete = True
        finally:
            if not complete:
                _joined.pop(self.group, None)
                group.fail(f"reader {self.first_reader + worker} left before it had all weights")

    def _received(self, group: ProcessGroup) -> Iterator[NamedTensor]:
        buffers = self.buffers()
        assembler = StreamAssembler()
        coming = group.broadcast(buffers[0])
        for number in count():
            buffer = buffers[number % _BUFFERS]
            group.wait(coming)
            filled = Filled(*_FILLED.unpack(bytes(buffer[-_FILLED.size :].cpu().numpy())))
            if not filled.last:
                coming = group.broadcast(buffers[(number + 1) % _BUFFERS])
            yield from assembler.tensors(buffer, filled)
            if filled.last:
                return

    def buffers(self) -> list[torch.Tensor]:
        """A member's: uint8, on its CUDA device with NCCL, else on the CPU."""
        device = torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")
        nbytes = self.bucket_nbytes // _BUFFERS
        return [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(_BUFFERS)]

    def _join(self, rank: int) -> ProcessGroup:
        if self.group in _joined:
            return _joined[self.group]
        while _joined:
            _joined.popitem()[1].leave()
        # the sender waits for every member, and gives up before they do
        patience = 3 * self.timeout_s
        try:
            store = TCPStore(self.host, self.port, is_master=False, timeout=timedelta(seconds=patience))
        except RuntimeError as error:
            raise WeightTransportError(f"the sender of the weights is not there any more: {error}") from error
        place, address = PrefixStore(self.group, store), interface_towards(self.host)
        _joined[self.group] = ProcessGroup(place, rank, self.size, self.backend, address, patience)
        return _joined[self.group]


class CollectiveSender:
    """See `WeightSender`."""

    def __init__(self, source: CollectiveSource, store: Any, group: ProcessGroup | None) -> None:
        """group: of these very members; None: it is made when the readers come."""
        self.group = group
        self._source = source
        self._store = PrefixStore(source.group, store)

    def source(self, first_reader: int) -> CollectiveSource:
        """See `WeightSender`."""
        return replace(self._source, first_reader=first_reader)

    def send(self, tensors: Iterable[NamedTensor], ended: Ended) -> dict[int, str]:
        """See `WeightSender`. The loss of a reader is a WeightTransportError."""

        def look() -> None:
            for number in ended():
                raise WeightTransportError(f"reader {number} ended its update before it had all weights")

        group = self._meet(look)
        buffers = self._source.buffers()
        flying: list[Any] = []
        cutter = StreamCutter(tensors)
        for number in count():
            buffer = buffers[number % _BUFFERS]
            if len(flying) == _BUFFERS:
                group.wait(flying.pop(0))
            filled = cutter.fill(buffer[: -_FILLED.size])
            buffer[-_FILLED.size :].copy_(torch.frombuffer(bytearray(_FILLED.pack(*filled)), dtype=torch.uint8))
            flying.append(group.broadcast(buffer))
            if filled.last:
                break
        for work in flying:
            group.wait(work)
        return {}

    def give_up(self, reason: str) -> None:
        """Tell whoever waits in the group that nothing will come."""
        if self.group is not None:
            self.group.fail(reason)
        else:
            self._store.set("failed", reason)

    def _meet(self, look: Callable[[], None]) -> ProcessGroup:
        if self.group is None:
            source = self._source
            way = (source.backend, source.host, source.timeout_s)
            self.group = ProcessGroup(self._store, 0, source.size, *way, look)
        self.group.look = look
        return self.group


def interface_towards(host: str) -> str:
    """The address of this host's network interface from which `host` is reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])
