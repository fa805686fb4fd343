"""How long each phase of a step takes, and in which order they began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Accumulates wall-clock seconds per phase; `take` reads and resets them."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self.order: list[str] = []
        """Every phase that began since the last `take`, as they did; one within another comes after it."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`, also when it ends by an exception."""
        self.order.append(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        seconds, self._seconds, self.order = self._seconds, {}, []
        return seconds
