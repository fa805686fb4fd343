"""Ranks of trainings in no time: a server that has imported everything forks them, where torchrun would start Python.

As a program it reads one JSON object a line (argv: of pretrain_rlpr.py; environment: one for each rank; log: file of
their output), forks the ranks, answers with their process ids and, when all have ended, with their exit statuses.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL


class ForkedRanks:
    """The server, as a context. One training at a time."""

    def __enter__(self) -> ForkedRanks:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer(180) == []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()  # its ranks end with it
        self._server.communicate()

    def start(self, argv: Sequence[str], ranks: int, log: Path, numba_cache: Path) -> None:
        """Start a training."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NUMBA_CACHE_DIR": str(numba_cache)}
        places = [
            shared
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            for rank in range(ranks)
        ]
        request = {"argv": list(argv), "environment": places, "log": str(log)}
        assert self._server.stdin is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        self._ranks = self._answer(60)

    def kill(self, ranks: Sequence[int]) -> None:
        """Send SIGKILL to some of its ranks."""
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._ranks[rank], signal.SIGKILL)

    def ended(self, timeout_s: float) -> list[int] | None:
        """The ranks' exit statuses, negative: a signal; None when they have not all ended in this time."""
        return self._answer(timeout_s) if self._readable(timeout_s) else None

    def _answer(self, timeout_s: float) -> list[int]:
        assert self._readable(timeout_s), "the server does not answer"
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server has ended"
        return [int(number) for number in json.loads(line)]

    def _readable(self, timeout_s: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            return bool(selector.select(timeout_s))


def serve() -> None:
    """Answer requests until there are no more."""
    print("[]", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ranks = [fork(request["argv"], environment, request["log"]) for environment in request["environment"]]
        print(json.dumps(ranks), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]), flush=True)


def fork(argv: list[str], environment: dict[str, str], log: str) -> int:
    """A rank that runs pretrain_rlpr.py as under torchrun; its process id."""
    child = os.fork()
    if child:
        return child
    # The two marks: no new process for the environment's sake, and an end with the server.
    os.environ.update(environment, MEGATRON_RLPR_ENVIRONMENT="1", TORCHELASTIC_RUN_ID="forked")
    process_environment.ensure()
    numba.config.reload_config()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(stream, target)
    status = 1
    try:
        status = pretrain_rlpr.main(argv)
    except Exception:
        traceback.print_exc()
    finally:
        process_environment.leave(status)


if __name__ == "__main__":
    import traceback

    import numba
    import pandas  # noqa: F401 - what the ranks import

    import pretrain_rlpr
    from megatron_rlpr import trainer  # noqa: F401
    from megatron_rlpr.config.checks import machine, model  # noqa: F401
    from megatron_rlpr.run import build  # noqa: F401
    from megatron_rlpr.system import process_environment

    numba.njit(lambda number: number)(1)  # makes numba import its compiler
    serve()
