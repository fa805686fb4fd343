"""What the values of keys may be: ranges of numbers and lengths of texts, and how a refused value is shown."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

LONGEST_SHOWN = 120


@dataclass(frozen=True)
class Bounds:
    """Allowed numbers: low <= x <= high, without the ends where they are open, and those in `also`."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()

    def hold(self, value: float) -> bool:
        above = value > self.low or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return value in self.also or (above and below)

    def __str__(self) -> str:
        """What a number must be, in words."""
        low = f"{'greater than' if self.low_open else 'at least'} {_number(self.low)}"
        high = f"{'less than' if self.high_open else 'at most'} {_number(self.high)}"
        return f"{low} and {high}" + "".join(f", or {_number(value)}" for value in self.also)


@dataclass(frozen=True)
class TextBounds:
    """Allowed texts: Unicode without control characters and line breaks, of at most so many bytes in UTF-8.

    longest_part: most bytes between two slashes. File systems take 255, and names of a run's files are made from them.
    """

    longest: int
    longest_part: int | None = None

    def hold(self, value: str | list[str]) -> bool:
        """Whether the text, or every text of a list, is allowed."""
        if isinstance(value, list):
            return all(map(self.hold, value))
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
            return False
        parts = value.split("/") if self.longest_part else []
        return _bytes(value) <= self.longest and all(_bytes(part) <= (self.longest_part or 0) for part in parts)

    def __str__(self) -> str:
        """What a text must be, in words."""
        parts = f", {self.longest_part} between slashes" if self.longest_part else ""
        return f"at most {self.longest} bytes{parts}, no control characters"


def shown(value: object) -> str:
    """A value in a message: on one line, whatever it holds, and cut when it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"


def _number(value: float) -> str:
    return f"{value:.10g}"


def _bytes(text: str) -> int:
    return len(text.encode())


# Upper ends lie far beyond what makes sense and well within what 32-bit integers, clocks and libraries take.
AT_LEAST_ZERO = Bounds(0, 1_000_000)
AT_LEAST_ONE = Bounds(1, 1_000_000)
POSITIVE = Bounds(0, 1_000_000, low_open=True)
ANY = Bounds(-1_000_000, 1_000_000)
SHARE = Bounds(0, 1)
POSITIVE_SHARE = Bounds(0, 1, low_open=True)
BELOW_ONE = Bounds(0, 1, high_open=True)
CPUS = Bounds(1, 1024)
SECONDS = Bounds(1, 604_800)
SEED = Bounds(0, 2**31 - 1)
STEP = Bounds(1, 1_000_000_000)
STEPS = Bounds(0, 1_000_000_000)
TOKENS = Bounds(1, 10_000_000)
NAME = TextBounds(128)
PATH = TextBounds(1000, longest_part=200)
TEXT = TextBounds(1000)
