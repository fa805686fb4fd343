"""The ranges of all keys, read from what --help says of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.config.help import help_text


@dataclass(frozen=True)
class Documented:
    """The range of a number or the length of a text, as --help words it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()
    longest: int = 0
    longest_part: int = 0

    def allows(self, value: Any) -> bool:
        if isinstance(value, list):
            return all(map(self.allows, value))
        if isinstance(value, str):
            plain = all(c.isprintable() or c in "\u3000\xa0" or ord(c) > 0x2030 for c in value)
            sizes = [len(part.encode("utf-8", "surrogateescape")) for part in value.split("/")]
            fits = len(value.encode("utf-8", "surrogateescape")) <= self.longest
            return plain and fits and (not self.longest_part or max(sizes) <= self.longest_part)
        low = value > self.low if self.low_open else value >= self.low
        high = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and (value in self.also or (low and high))


def documented() -> dict[str, Documented]:
    """Of every key whose type has a range."""
    number, found = r"(-?[\d.e+-]*\d)", {}
    for name, words in re.findall(
        r"(\w+\.\w+)=\S* +\(((?:int|float|str|list of str)[^)]*)\)", " ".join(help_text().split())
    ):
        low = re.search(f"(at least|greater than) {number}", words)
        high = re.search(f"(at most|less than) {number}(?! bytes)\\b", words)
        size, part = re.search(r"at most (\d+) bytes", words), re.search(r"(\d+) between slashes", words)
        also = re.search(f", or {number}", words)
        found[name] = Documented(
            low=float(low[2]) if low else -math.inf,
            high=float(high[2]) if high and not size else math.inf,
            low_open=bool(low and low[1] == "greater than"),
            high_open=bool(high and high[1] == "less than"),
            also=(float(also[1]),) if also else (),
            longest=int(size[1]) if size else 0,
            longest_part=int(part[1]) if part else 0,
        )
    return found


RANGES = documented()
