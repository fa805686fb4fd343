"""A lock for a loop of short turns that others want to get in between."""

from __future__ import annotations

import threading


class TurnLock:
    """A lock whose waiters get in before a holder that asks for it again: without, a loop of turns could keep it for
    ever."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()
