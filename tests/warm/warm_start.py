"""Programs in no time: a server that has imported everything forks their processes, where a new Python would import it
all again, which is most of what a small training computes. `warm_server.py` is the server.

What is started so runs as it would under `python` or torchrun, in an environment and a folder of its own, but
not through torchrun itself: a process that fails has its siblings killed a minute later, not at once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
ANSWER_S = 300.0
"""What the server has to import everything, however busy the machine is."""


_ONE_SERVER = threading.Lock()


class Started:
    """The processes of one program: the ranks of a training, say."""

    def __init__(self, request: Mapping[str, object], log: Path, address: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._unread = b""
        self._status: int | None = None
        self._log = log
        processes = self._answer(ANSWER_S)
        assert processes is not None, "the server does not answer"
        self.processes = processes

    def kill(self, ranks: Sequence[int]) -> None:
        """Send SIGKILL to some of them."""
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank], signal.SIGKILL)

    def ended(self, timeout_s: float) -> list[int] | None:
        """Their exit statuses, negative: a signal; None when they have not all ended in this time."""
        return self._answer(timeout_s)

    def poll(self) -> int | None:
        """The first exit status that is not 0, else 0; None while any of them runs."""
        if self._status is None and (statuses := self.ended(0.001)) is not None:
            self._status = _of_all(statuses)
        return self._status

    def end(self, timeout_s: float = 1500.0) -> tuple[int, str]:
        """Wait: the first exit status that is not 0, else 0, and all output."""
        statuses = self.ended(timeout_s)
        output = self._log.read_text(errors="replace")
        if statuses is None:
            self.kill(range(len(self.processes)))
        assert statuses is not None, f"no end within {timeout_s} s: {output[-4000:]}"
        return _of_all(statuses), output

    def _answer(self, timeout_s: float) -> list[int] | None:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                received = self._connection.recv(2**16)
            except TimeoutError:
                return None
            assert received, "the server has ended"
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return [int(number) for number in json.loads(line)]


def _of_all(statuses: Sequence[int]) -> int:
    return next((status for status in statuses if status), 0)


def start(
    program: str,
    arguments: Sequence[object],
    log: Path,
    ranks: int = 0,
    environment: Mapping[str, str] | None = None,
    ray_workers: bool = False,
) -> Started:
    """Start a program of this project. program: a file's path, or a module's name; log: gets all output.

    ranks: how many processes, with the variables of a torchrun; 0: one, without them. ray_workers: those of a Ray
    cluster that the program starts are warm as well. They are then no descendants of the program.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launched = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": "warm",
    }
    places = [launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] or [{}]
    request = {
        "program": program,
        "arguments": list(map(str, arguments)),
        "log": str(log),
        "environments": [{**place, **(environment or {})} for place in places],
        "ray_workers": ray_workers,
    }
    with _ONE_SERVER:
        address = _server()
    log.unlink(missing_ok=True)
    return Started(request, log, address)


@functools.cache
def _server() -> str:
    """Start the server, which ends with this process; its address."""
    address = str(Path(tempfile.mkdtemp(prefix="warm_")) / "socket")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "unit")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm_server.py")), address],
        stdin=subprocess.PIPE,  # whose end tells it that this process is gone
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    atexit.register(_stop, server, address)
    assert server.stdout is not None
    assert b"ready\n" in iter(server.stdout.readline, b""), "the server of warm processes did not start"
    return address


def _stop(server: subprocess.Popen[bytes], address: str) -> None:
    server.kill()  # what it has started ends with it
    server.wait()
    Path(address).unlink(missing_ok=True)
    Path(address).parent.rmdir()
