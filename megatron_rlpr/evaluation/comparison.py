"""summary.json: what training changed, on the same prompts, with intervals; and the same as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from megatron_rlpr.evaluation.intervals import Interval, mean_interval, paired_difference
from megatron_rlpr.system import atomic_file

MEASURES = {
    "reward": "mean reward",
    "reference_probability": "reference probability",
    "format": "format rate",
    "accuracy": "accuracy",
}


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided exact p-value of the sign test: prompts that rose against those that fell; 1 if all tie."""
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
    old = {name: mean_interval(before[name]) for name in shared}
    new = {name: mean_interval(after[name]) for name in shared}
    difference = {
        name: {
            **_plain(paired_difference(before[name], after[name])),
            "p_value": sign_test(np.subtract(after[name], before[name]).tolist()),
            "rises_beyond_intervals": new[name].low > old[name].high,
        }
        for name in shared
    }
    return {
        "prompts": len(before[shared[0]]) if shared else 0,
        "before": {name: _plain(old[name]) for name in shared},
        "after": {name: _plain(new[name]) for name in shared},
        "difference": difference,
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    """mean, low, high; the ends are None when one prompt cannot tell them."""
    ends = {end: float(getattr(interval, end)) for end in ("mean", "low", "high")}
    return {end: value if math.isfinite(value) else None for end, value in ends.items()}


def write_summary(
    path: str | Path,
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    *,
    steps: int,
    wall_time_s: float,
    peak_memory_gb: float,
    **extra: Any,
) -> dict[str, Any]:
    """Write `compare(before, after)` and the run's cost as JSON, atomically; returns what was written.

    wall_time_s: seconds since the run began, resumed parts included; peak_memory_gb: over all ranks, in GB (1e9 bytes);
    extra: more entries at the top level (name of the validation set, decoding, model).
    """
    summary = {
        **extra,
        **compare(before, after),
        "steps": steps,
        "wall_time_s": round(wall_time_s, 1),
        "peak_memory_gb": round(peak_memory_gb, 2),
    }
    atomic_file.write_text(Path(path), json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary as a table: a row per measure, mean [95% interval] before and after, paired difference, p-value."""
    minutes, memory = summary["wall_time_s"] / 60, summary["peak_memory_gb"]
    caption = f"{summary['steps']} steps in {minutes:.1f} minutes, at most {memory:.1f} GB of memory"
    table = Table(title=f"Held-out prompts ({summary['prompts']}), mean [95% interval]", caption=caption)
    table.add_column("", no_wrap=True)
    for column in ("before", "after", "paired difference", "p (sign test)"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, change in summary["difference"].items():
        cells = [_cell(summary["before"][name]), _cell(summary["after"][name]), _cell(change, sign="+")]
        table.add_row(MEASURES.get(name, name), *cells, f"{change['p_value']:.1g}")
    return table


def interval_text(interval: Mapping[str, float | None], sign: str = "") -> str:
    """ "mean [low, high]" of an entry of the summary; an end that one prompt cannot tell is "?"."""
    ends = ("?" if interval[end] is None else f"{interval[end]:{sign}.3f}" for end in ("mean", "low", "high"))
    return "{} [{}, {}]".format(*ends)


def _cell(interval: Mapping[str, float | None], sign: str = "") -> str:
    return escape(interval_text(interval, sign))
