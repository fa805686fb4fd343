"""The end of a validation as a table: accuracies with 95% intervals, of every set and of means over groups of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from megatron_rlpr.data.sources import benchmark_group
from megatron_rlpr.evaluation.held_out import ValidationResult
from megatron_rlpr.evaluation.intervals import Interval, mean_of_independent, share_interval

GROUPS = {"general": "mean of general reasoning", "maths": "mean of mathematics", "all": "mean of all sets"}


def accuracy_rows(results: Sequence[ValidationResult]) -> list[dict[str, Any]]:
    """A row per set and strategy, then per strategy the means over the sets of each group, JSON-serialisable.

    Sets weigh the same in a mean, whatever their sizes, as in the paper's tables; a mean of one set is left out.
    """
    rows = [
        {
            "set": result.name,
            "strategy": result.strategy,
            "prompts": len(result.per_prompt["accuracy"]),
            "answers_per_prompt": result.samples,
            **_ends(share_interval(result.per_prompt["accuracy"])),
            "pass_at_k": {str(k): value for k, value in result.pass_at_k.items()},
            "format": result.mean("format"),
            "response_length": result.response_length,
        }
        for result in results
    ]
    means = [
        {"set": GROUPS[group], "strategy": strategy, **_ends(interval)}
        for (strategy, group), interval in group_means(results).items()
    ]
    return [*rows, *means]


def group_means(results: Sequence[ValidationResult]) -> dict[tuple[str, str], Interval]:
    """(strategy, group of GROUPS) -> mean accuracy over its sets, where there are at least two."""
    found: dict[tuple[str, str], list[Interval]] = {}
    for result in results:
        groups = {benchmark_group(source) for source in result.data_sources}
        interval = share_interval(result.per_prompt["accuracy"])
        for group in ("all", groups.pop() if len(groups) == 1 else None):
            if group:
                found.setdefault((result.strategy, group), []).append(interval)
    ordered = sorted(found.items(), key=lambda entry: list(GROUPS).index(entry[0][1]))
    return {key: mean_of_independent(intervals) for key, intervals in ordered if len(intervals) > 1}


def accuracy_table(rows: Sequence[Mapping[str, Any]], step: int, where: str) -> Table:
    """`accuracy_rows` for the console. where: the folder that holds all answers."""
    caption = f"every answer: {where}"
    table = Table(title=f"Accuracy after step {step}, mean [95% interval]", caption=caption)
    table.add_column("set", no_wrap=True)
    for column in ("decoding", "prompts", "accuracy", "pass@k", "format", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        accuracy = f"{row['accuracy']:.3f} \\[{row['low']:.3f}, {row['high']:.3f}]"
        if "prompts" not in row:
            table.add_row(row["set"], row["strategy"], "", accuracy, "", "", "")
            continue
        prompts = f"{row['prompts']} x {row['answers_per_prompt']}"
        several = {k: value for k, value in row["pass_at_k"].items() if k != "1"}
        passed = "  ".join(f"@{k} {value:.3f}" for k, value in several.items())
        counts = (f"{row['format']:.3f}", f"{row['response_length']:.1f}")
        table.add_row(row["set"], row["strategy"], prompts, accuracy, passed, *counts)
    return table


def _ends(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
