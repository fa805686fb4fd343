"""summary.json: what training changed, on the same prompts, with intervals; and the same as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from megatron_rlpr import atomic_file

Z_95 = 1.959963984540054
MEASURES = {"reward": "mean reward", "reference_probability": "reference probability", "format": "format rate", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean over prompts, with Wilson's score interval when every value is 0 or 1, else the normal one from the sample std.

    values: one number per prompt (the mean of its samples, when there are several), so that prompts are the independent
    units. A single value that is no proportion has no interval: both ends equal it. Raises ValueError for no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values to estimate a mean from")
    mean, count = float(array.mean()), array.size
    if np.isin(array, (0.0, 1.0)).all():
        # Wilson (1927): stays inside [0, 1] and has a width also at 0 and 1.
        centre = (mean + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
        half = Z_95 * math.sqrt(mean * (1 - mean) / count + Z_95**2 / (4 * count**2)) / (1 + Z_95**2 / count)
        return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))
    return _normal(array)


def _normal(array: npt.NDArray[np.float64]) -> Estimate:
    mean = float(array.mean())
    half = Z_95 * float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided exact p-value of the sign test: prompts that rose against prompts that fell, ties left out; 1 if all tie."""
    rose = sum(d > 0 for d in differences)
    fell = sum(d < 0 for d in differences)
    changed = rose + fell
    tail = sum(math.comb(changed, k) for k in range(min(rose, fell) + 1))
    return min(1.0, 2 * tail / 2**changed) if changed else 1.0


def compare(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """before, after and their paired difference, for every measure that both have.

    before, after: measure -> one value per prompt, in the same prompt order. Raises ValueError when the numbers of
    prompts differ.
    """
    shared = [name for name in before if name in after]
    difference: dict[str, Any] = {}
    for name in shared:
        if len(before[name]) != len(after[name]):
            raise ValueError(
                f"{name}: {len(before[name])} prompts before training, {len(after[name])} after: a pair needs the same prompts"
            )
        change = np.asarray(after[name], dtype=np.float64) - np.asarray(before[name], dtype=np.float64)
        old, new = mean_estimate(before[name]), mean_estimate(after[name])
        difference[name] = {
            **_normal(change).as_dict(),
            "p_value": sign_test(change.tolist()),
            "rises_beyond_intervals": new.low > old.high,
        }
    return {
        "prompts": len(before[shared[0]]) if shared else 0,
        "before": {name: mean_estimate(before[name]).as_dict() for name in shared},
        "after": {name: mean_estimate(after[name]).as_dict() for name in shared},
        "difference": difference,
    }


def write_summary(
    path: str | Path,
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    *,
    steps: int,
    wall_time_s: float,
    peak_memory_gb: float,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `compare(before, after)` and the run's cost as JSON, atomically; returns what was written.

    wall_time_s: seconds since the run began, resumed parts included; peak_memory_gb: over all ranks, in GB (1e9 bytes);
    extra: more entries at the top level (name of the validation set, decoding, model).
    """
    summary = {
        **(extra or {}),
        **compare(before, after),
        "steps": steps,
        "wall_time_s": round(wall_time_s, 1),
        "peak_memory_gb": round(peak_memory_gb, 2),
    }
    atomic_file.write_text(Path(path), json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary as a table: a row per measure, mean [95% interval] before and after, paired difference, p-value."""
    caption = f"{summary['steps']} steps in {summary['wall_time_s'] / 60:.1f} minutes, at most {summary['peak_memory_gb']:.1f} GB of memory"
    table = Table(title=f"Held-out prompts ({summary['prompts']}), mean [95% interval]", caption=caption)
    table.add_column("")
    for column in ("before", "after", "paired difference", "p (sign test)"):
        table.add_column(column, justify="right")
    for name, change in summary["difference"].items():
        cells = [_cell(summary["before"][name]), _cell(summary["after"][name]), _cell(change, sign="+"), f"{change['p_value']:.1g}"]
        table.add_row(MEASURES.get(name, name), *cells)
    return table


def _cell(estimate: Mapping[str, float], sign: str = "") -> str:
    return f"{estimate['mean']:{sign}.3f} \\[{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
