"""SIGTERM, Ctrl-C and a closed terminal: the first asks a run to stop where nothing is lost, a second ends it at once.

A thread hears of the signals, because a library's call can keep the main thread out of Python for minutes. Outside of
`held` nothing that was trained can be lost, and the first signal ends the process too. Inside, the run looks: `agree`
where all ranks are together, `check` in long work that one rank may abandon alone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from megatron_rlpr.system import process_environment

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ECHO_S = 2.0
"""Slurm signals every rank itself, and torchrun passes on what it got: within so long it is one and the same signal."""
_LOOK_EVERY_S = 2.0


class Stopped(Exception):
    """The run was asked to stop. Arguments: the signal's name, then, once that is known, what has been saved."""

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells report a process that a signal ended."""
        return 128 + signal.Signals[self.args[0]]

    def __str__(self) -> str:
        """The run's last words."""
        name, kept = (*self.args, "nothing was left to save")[:2]
        return f"stopped by {name}: {kept}; go on with: {process_environment.command()}"


class _Asked:
    """What this process has been asked for, and whether it may simply end."""

    first: signal.Signals | None = None
    at = 0.0
    held = False
    wakeup: socket.socket | None = None
    ranks_here = 0
    """Processes that the launcher had started when `held` began."""


def listen() -> None:
    """From now on signals end this process as described above; what is ignored (nohup) stays so. In the main thread."""
    reader, _Asked.wakeup = socket.socketpair()
    _Asked.wakeup.setblocking(False)
    threading.Thread(target=_hear, args=(reader,), name="stop signals", daemon=True).start()
    listen_again()


def listen_again() -> None:
    """Take the handlers back from a library that has replaced them (Ray does); nothing where nobody has listened."""
    if _Asked.wakeup is None:
        return
    signal.set_wakeup_fd(_Asked.wakeup.fileno(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave_it_to_the_thread)


@contextmanager
def held() -> Iterator[None]:
    """While the body runs, the first signal only asks: the body looks with `agree` and `check`."""
    listen_again()
    _Asked.held, _Asked.ranks_here = True, process_environment.siblings()
    try:
        yield
        check()
    finally:
        _Asked.held = False


def check() -> None:
    """Raise Stopped if this process was asked to stop while it is held."""
    if _Asked.held and _Asked.first is not None:
        raise Stopped(_Asked.first.name)


def agree(group: Any = None) -> None:
    """Collective over a group that takes CPU tensors (None: all ranks): raise Stopped on all if any was asked."""
    import torch
    import torch.distributed as dist

    number = int(_Asked.first or 0)
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        largest = torch.tensor(number)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        number = int(largest)
    if number:
        raise Stopped(signal.Signals(number).name)


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """With a handler in Python the interpreter tells the thread, whatever the main thread is doing."""


def _hear(reader: socket.socket) -> None:
    incomplete = False
    while True:
        waits_for_run = _Asked.held and _Asked.first is not None
        if select.select([reader], [], [], _LOOK_EVERY_S if waits_for_run else None)[0]:
            for number in reader.recv(64):
                if number in _SIGNALS:
                    _asked(signal.Signals(number))
        elif waits_for_run:
            # torchrun ends all ranks when one has failed: they would wait for it, and for the point where they may stop
            was_incomplete, incomplete = incomplete, process_environment.siblings() < _Asked.ranks_here
            if _Asked.held and _Asked.first and was_incomplete and incomplete:
                _end(_Asked.first, "another rank has failed, the last checkpoint stays")


def _asked(number: signal.Signals) -> None:
    if _Asked.first is None:
        _Asked.first, _Asked.at = number, time.monotonic()
        if not _Asked.held:
            _end(number, "nothing was left to save")
        _say(f"{number.name}: stopping as soon as nothing is lost; a second signal ends the run at once")
    elif time.monotonic() - _Asked.at > _ECHO_S:
        _end(number, "at the second signal, the last checkpoint stays")


def _end(number: signal.Signals, kept: str) -> NoReturn:
    stopped = Stopped(number.name, kept)
    _say(str(stopped))
    process_environment.leave(stopped.exit_status)


def _say(line: str) -> None:
    """The first rank speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
