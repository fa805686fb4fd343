"""A limit on how long a block of a test may take."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hung(BaseException):
    """The block took too long. No Exception, so that what hangs does not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Hung where the block takes longer. Only in the main thread, and one limit at a time."""

    def stop(*_: object) -> None:
        raise Hung(f"took over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
