"""The server of warm_start.py: imports what programs of this project import, then forks their processes.

warm_server.py ADDRESS: listens at a Unix socket. Each connection is one JSON object in a line (program, arguments,
environments: one for each process, log); the answers are two lines, the process ids and, when all have ended, their
exit statuses. It ends when its standard input does, and all that it has forked with it.
"""

from __future__ import annotations

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

SIBLINGS_END_S = 60
"""Processes that live on so long after one of them has failed are killed."""


def serve(address: str) -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            if any(key.fileobj is sys.stdin for key, _ in selector.select()):
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection, address)
            connection.close()


def answer(connection: socket.socket, address: str) -> NoReturn:
    """Start what is asked for and wait for its end, in a process between the server and those that it starts."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile() as stream:
        request = json.loads(stream.readline())
    processes = [fork(request, environment, connection, address) for environment in request["environments"]]
    ended: dict[int, int] = {}

    def kill(_number: int, _frame: FrameType | None) -> None:
        for process in set(processes) - set(ended):
            os.kill(process, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    with contextlib.suppress(BrokenPipeError):  # who asked may be gone before the end
        connection.sendall(json.dumps(processes).encode() + b"\n")
        while len(ended) < len(processes):
            process, status = os.wait()
            if process in processes:
                ended[process] = os.waitstatus_to_exitcode(status)
                if ended[process] and len(ended) < len(processes):
                    signal.alarm(SIBLINGS_END_S)
        connection.sendall(json.dumps([ended[process] for process in processes]).encode() + b"\n")
    os._exit(0)


def fork(request: dict[str, Any], environment: dict[str, str], connection: socket.socket, address: str) -> int:
    """Start one process of a program; its process id."""
    child = os.fork()
    if child:
        return child
    program, sys.argv[1:] = request["program"], request["arguments"]
    if request.get("ray_workers"):
        here = os.path.dirname(os.path.abspath(__file__))
        environment |= {"WARM_PYTHON": sys.executable, "WARM_FOLDER": here, "WARM_ADDRESS": address}
        sys.executable = os.path.join(here, "python")
    os.environ.update(environment)
    if "NUMBA_CACHE_DIR" in environment:  # the program is to find its loops there, or none
        numba.config.reload_config()
        for loop in loops:
            loop.__dict__.pop("_compiled")
    if program.endswith("default_worker.py"):
        importlib.reload(ray_utils)
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(stream, target)
    os.close(output)
    connection.close()
    sys.path[0] = os.path.dirname(os.path.abspath(program)) if program.endswith(".py") else os.getcwd()
    status: object = 0
    try:
        if program.endswith(".py"):
            sys.argv[0] = program
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    process_environment.leave(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    import numba
    import pandas  # noqa: F401 - what the programs import

    from megatron_rlpr import trainer  # noqa: F401
    from megatron_rlpr.actor.cpu.openmp_loop import Loop
    from megatron_rlpr.config.checks import machine, model  # noqa: F401
    from megatron_rlpr.run import build  # noqa: F401

    sys.modules["ray"] = None  # type: ignore[assignment] - it reads the environment when it is imported
    from vllm import LLM  # noqa: F401
    from vllm.v1.engine import llm_engine  # noqa: F401
    from vllm.v1.executor import ray_utils
    from vllm.v1.worker import cpu_worker  # noqa: F401

    del sys.modules["ray"]
    loops = [thing for thing in gc.get_objects() if isinstance(thing, Loop)]
    for loop in loops:
        _ = loop._compiled

    serve(sys.argv[1])
