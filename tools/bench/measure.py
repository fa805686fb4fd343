"""Time, memory and the speed of the machine, measured side by side.

Other work on a machine changes its speed from second to second. So the two sides of a comparison take turns within one
run, in alternating order, the first repetition is dropped, and medians are compared; the rate of matrix products, which
sets the floor, is measured between them.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows, columns and depth of the matrix product whose rate is the machine's: large enough for its peak."""
_SMALLEST_MATMUL = 128
_LONGEST_MATMUL_S = 1.0


@dataclass
class Side:
    """One side of a comparison: run(repetition) does the work and returns its result.

    cpu_seconds: of all threads together; less disturbed by other work on the machine than the time on the clock.
    """

    run: Callable[[int], Any]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    peak_memory: int = 0

    @property
    def median_seconds(self) -> float:
        """Median over the repetitions kept."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Both sides after all repetitions, and the matrix-product rates (FLOP/s) measured beside the timings."""

    baseline: Side
    ours: Side
    rates: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """Median over repetitions of baseline time / our time, each pair measured one after the other."""
        return statistics.median(a / b for a, b in zip(self.baseline.seconds, self.ours.seconds, strict=True))

    @property
    def cpu_speedup(self) -> float:
        """The same of CPU time."""
        return statistics.median(a / b for a, b in zip(self.baseline.cpu_seconds, self.ours.cpu_seconds, strict=True))

    @property
    def memory_ratio(self) -> float:
        """Our peak extra memory over the baseline's."""
        return self.ours.peak_memory / max(self.baseline.peak_memory, 1)

    def floor_fraction(self, flops: list[float]) -> float:
        """Median over repetitions of (flops[i] / rate) / our time: 1 when nothing but matrix products took time."""
        return statistics.median(f / rate / s for f, rate, s in zip(flops, self.rates, self.ours.seconds, strict=True))


def compare(
    baseline: Callable[[int], Any], ours: Callable[[int], Any], repetitions: int, dtype: torch.dtype
) -> Comparison:
    """Run both sides repetitions + 1 times in turns; the first gives peak memory and results, the others the times.

    The machine's rate is taken right before and right after our side.
    """
    sides = (Side(baseline), Side(ours))
    rates = []
    for repetition in range(repetitions + 1):
        for side in sides if repetition % 2 else sides[::-1]:
            if repetition == 0:
                result, side.peak_memory = with_peak_memory(lambda side=side: side.run(0))  # type: ignore[misc]
            else:
                before = matmul_rate(dtype) if side is sides[1] else 0.0
                cpu_start = time.process_time()
                result, seconds = timed(lambda side=side: side.run(repetition))  # type: ignore[misc] # noqa: B023
                side.seconds.append(seconds)
                side.cpu_seconds.append(time.process_time() - cpu_start)
                if side is sides[1]:
                    rates.append((before + matmul_rate(dtype)) / 2)
            side.results.append(result)
    return Comparison(*sides, tuple(rates))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of some work and the seconds it took."""
    _finish()
    start = time.perf_counter()
    result = work()
    _finish()
    return result, time.perf_counter() - start


def with_peak_memory(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result of some work and the most memory it needed at once beyond what was there before, in bytes.

    With CUDA what torch allocated. Without, resident memory: free memory goes back to the system first, so that nothing
    is reused unseen, and the kernel's high-water mark starts again.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    result = work()
    return result, max(0, _status_bytes("VmHWM") - before)


def matmul_rate(dtype: torch.dtype, seconds: float = 0.15) -> float:
    """FLOP/s of a large square matrix product in this dtype: the median over `seconds` of products.

    A processor without arithmetic for the dtype would take minutes for it: a smaller product stands for it there.
    """
    where = "cuda" if torch.cuda.is_available() else "cpu"
    size = _SMALLEST_MATMUL
    while True:
        left = torch.randn(size, size, device=where).to(dtype)
        out = torch.empty_like(left)
        product = partial(torch.mm, left, left, out=out)
        product()
        if size == MATMUL_SIZE[where] or 8 * timed(product)[1] > _LONGEST_MATMUL_S:
            break
        size = min(2 * size, MATMUL_SIZE[where])
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(product)[1])
    return 2 * size**3 / statistics.median(times)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
