"""Ranges of numbers, as the keys of the schema state them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Bounds:
    """Allowed numbers: low <= x <= high, without the ends where they are open, and those in `also`."""

    low: float = -inf
    high: float = inf
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()

    def hold(self, value: float) -> bool:
        above = value > self.low or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return value in self.also or (above and below)

    def __str__(self) -> str:
        """What a number must be, in words; empty when it may be any."""
        parts = []
        if self.low != -inf:
            parts.append(f"{'greater than' if self.low_open else 'at least'} {self.low:g}")
        if self.high != inf:
            parts.append(f"{'less than' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts) + "".join(f", or {value:g}" for value in self.also)


ANY = Bounds()
POSITIVE = Bounds(0, low_open=True)
AT_LEAST_ZERO = Bounds(0)
AT_LEAST_ONE = Bounds(1)
POSITIVE_SHARE = Bounds(0, 1, low_open=True)
BELOW_ONE = Bounds(0, 1, high_open=True)
