"""Whether an engine that has not answered yet is slow or hangs, by the processor time of its thread that works.

An engine that computes uses processor time, however little of it a busy machine leaves it: it is slow, and waited for.
One that uses none is stopped or waits for something that does not come; one that has used as much as all its patience
in a single call turns in circles. Both hang.
"""

from __future__ import annotations


class Silence:
    """One call that has not been answered yet."""

    def __init__(self, limit_s: float) -> None:
        """limit_s: of time without any computation, and of processor time in the call."""
        self._limit_s = limit_s
        self._still_s = 0.0
        self._first_s: float | None = None
        self._last_s: float | None = None

    def goes_on(self, seconds: float) -> None:
        """So much time has passed while somebody listened."""
        self._still_s += seconds

    def heard(self, computed_s: float) -> None:
        """A heartbeat: the processor time that the engine's thread has used since it started."""
        if self._first_s is None:
            self._first_s = computed_s
        if computed_s != self._last_s:
            self._still_s = 0.0
        self._last_s = computed_s

    @property
    def verdict(self) -> str:
        """Why the engine counts as hanging; empty: it does not."""
        if self._still_s > self._limit_s:
            return f"computed nothing for {self._limit_s:g} s"
        if (self._last_s or 0.0) - (self._first_s or 0.0) > self._limit_s:
            return f"computed for {self._limit_s:g} s without an end"
        return ""
