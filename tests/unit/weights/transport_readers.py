"""Real processes at the other end of a transport: readers that take a stream, or misbehave at a chosen tensor.

Run as a program it imports the libraries once and forks a process for every task it gets (pickled, over its standard
input), which writes what it saw to the task's file: a reader is there at once, on a busy machine too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightSender, WeightSource

ROOT = Path(__file__).parents[3]
LAST_RESORT_S = 600.0
"""What takes so long hangs, however slow the machine is. A limit that no test should meet."""


@dataclass(frozen=True)
class Task:
    """What a reader does with the streams of its sources: take all, or `misdeed` at tensor number `at` of the last
    one."""

    sources: tuple[WeightSource, ...]
    worker: int
    misdeed: str
    at: int
    report: Path
    environment: dict[str, str]


@dataclass(frozen=True)
class Reader:
    """A process that reads; what it says is there when it has ended."""

    pid: int
    report: Path

    def ended(self) -> bool:
        return not psutil.pid_exists(self.pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@cache
def nursery() -> subprocess.Popen[bytes]:
    """The program that forks readers; it ends with this process, which holds its input."""
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


class Readers:
    """Processes that read, started by `start` and awaited by `reports`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Reader] = []
        self.started = 0

    def start(
        self, sources: Sequence[WeightSource], worker: int, misdeed: str = "", at: int = -1, **environment: str
    ) -> Reader:
        self.started += 1
        report = self.folder / f"report {self.started}"
        forks = nursery()
        assert forks.stdin is not None
        assert forks.stdout is not None
        pickle.dump(Task(tuple(sources), worker, misdeed, at, report, environment), forks.stdin)
        forks.stdin.flush()
        self.processes.append(Reader(int(forks.stdout.readline()), report))
        return self.processes[-1]

    def reports(self) -> list[dict[str, Any]]:
        """What every reader says when it ends; {} of one that was killed."""
        found = []
        for process in self.processes:
            deadline = time.monotonic() + LAST_RESORT_S
            while not process.ended() and not stopped(process.pid):
                assert time.monotonic() < deadline, "a reader hangs"
                time.sleep(0.005)
            process.kill()
            found.append(json.loads(process.report.read_text()) if process.report.exists() else {})
        self.processes.clear()
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()


def stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    return False


@contextmanager
def readers() -> Iterator[Readers]:
    """None of them outlives the context."""
    with tempfile.TemporaryDirectory() as folder:
        nursery()
        started = Readers(Path(folder))
        try:
            yield started
        finally:
            started.end()


_SENDER = """
import os, pickle, signal, sys
from transport_readers import weights
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport
with {transport}.sender(["a"]) as sender:
    sys.stdout.buffer.write(pickle.dumps(sender.source(0)))
    sys.stdout.flush()
    def stream():
        for number, one in enumerate(weights()):
            yield one
            if number == 5:
                os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    sender.send(stream(), lambda: [])
"""


@contextmanager
def failing_sender(transport: str, signal_name: str) -> Iterator[tuple[subprocess.Popen[bytes], WeightSource]]:
    """A process that sends through `transport` (an expression) and gets the signal in the middle of its stream; and its
    source."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    program = _SENDER.format(transport=transport)
    process = subprocess.Popen([sys.executable, "-c", program, signal_name], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        yield process, pickle.load(process.stdout)
    finally:
        process.kill()
        process.wait()


@dataclass
class Sent:
    """What the sender saw."""

    lost: dict[int, str] = field(default_factory=dict)
    checksum: str = ""


def send(sender: WeightSender, tensors: Iterable[NamedTensor], ended: Sequence[int] = ()) -> Sent:
    stream = ChecksummedStream(tensors)
    lost = sender.send(stream, lambda: ended)
    return Sent(lost, stream.checksum)


def weights(count: int = 12, rows: int = 300, seed: int = 0) -> list[NamedTensor]:
    """Tensors of several dtypes whose bits are all kinds of values, NaNs among them; one larger than all others
    together."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
    named: list[NamedTensor] = [("scalar", torch.tensor(3.5)), ("empty", torch.zeros(0, 4))]
    for number in range(count):
        dtype = dtypes[number % len(dtypes)]
        shape = (rows * 4 if number == 3 else 7 + number, 33)
        raw = torch.randint(
            0,
            2 if dtype == torch.bool else 256,
            (shape[0] * shape[1] * dtype.itemsize,),
            dtype=torch.uint8,
            generator=generator,
        )
        named.append((f"layer.{number}.weight", raw.view(dtype).view(shape)))
    return named


def serve(task: Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    taken: list[str] = []
    kept: list[torch.Tensor] = []  # as engines do: what is kept must not change later
    checksums = []
    for source in task.sources:
        taken.clear()
        stream = ChecksummedStream(source.receive(task.worker))
        try:
            for name, tensor in stream:
                kept.append(tensor)
                taken.append(name)
                if task.misdeed and source is task.sources[-1] and len(taken) == task.at:
                    misbehave(task.misdeed)
        except RuntimeError as error:
            return {"error": f"{type(error).__name__}: {error}", "taken": len(taken)}
        checksums.append(stream.checksum)
    again = ChecksummedStream(zip(taken, kept[-len(taken) :], strict=True))
    for _ in again:
        continue
    return {"checksums": checksums, "still": again.checksum == checksums[-1], "taken": len(taken)}


def misbehave(misdeed: str) -> None:
    if misdeed == "leaves":
        raise RuntimeError("the reader's own fault")
    if misdeed == "is slow":
        time.sleep(0.5)
        return
    os.kill(os.getpid(), {"dies": signal.SIGKILL, "stops": signal.SIGSTOP}[misdeed])


def fork_readers() -> None:
    """Until the input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: an ended one is gone
    with contextlib.suppress(EOFError):
        while True:
            task: Task = pickle.load(sys.stdin.buffer)
            pid = os.fork()
            if pid == 0:
                os.environ.update(task.environment)
                try:
                    task.report.write_text(json.dumps(serve(task)))
                finally:
                    os._exit(0)  # engines are killed, too: gloo's pending operations would hold an ordinary end up
            print(pid, flush=True)


if __name__ == "__main__":
    import transport_readers  # the name under which tasks are pickled

    transport_readers.fork_readers()
