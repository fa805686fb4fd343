"""All metrics of a validation, with the reference's names for accuracies and for means over the general benchmarks
(spec section 6).

val_<strategy>/test_acc/<data source> is the mean over all prompts. The means exist only where the data sources carry
one of SUFFIXES behind the name of the set ("TheoremQA_Avg2-R1"); with the released, bare names there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from megatron_rlpr.data.sources import GENERAL_SETS
from megatron_rlpr.evaluation.accuracy_table import group_means
from megatron_rlpr.evaluation.held_out import ValidationResult
from megatron_rlpr.evaluation.intervals import share_interval

SUFFIXES = ("R1", "OC", "SysR1", "UserR1")
_BEST_OF = (("OC", "SysR1"), ("OC", "UserR1"), ("SysR1",))
_NAMES = "+".join(GENERAL_SETS)


def validation_metrics(results: Sequence[ValidationResult]) -> dict[str, float]:
    """Those of every result, accuracies per data source and means over sets, with the ends of their intervals."""
    metrics = {name: value for result in results for name, value in result.metrics().items()}
    accuracies: dict[str, dict[str, list[float]]] = {}
    for result in results:
        sources = accuracies.setdefault(result.strategy, {})
        for source, accuracy in zip(result.data_sources, result.per_prompt["accuracy"], strict=True):
            sources.setdefault(source, []).append(accuracy)
    for strategy, sources in accuracies.items():
        for source, values in sources.items():
            interval = share_interval(values)
            metrics[f"val_{strategy}/test_acc_low/{source}"] = interval.low
            metrics[f"val_{strategy}/test_acc_high/{source}"] = interval.high
    for (strategy, group), mean in group_means(results).items():
        ends = {"": mean.mean, "_low": mean.low, "_high": mean.high}
        metrics |= {f"val_{strategy}/mean_acc{end}/{group}": value for end, value in ends.items()}
    return metrics | reference_metrics(accuracies)


def reference_metrics(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """All of one validation; accuracies: strategy ("sampling", "greedy") -> data source -> accuracy of every prompt."""
    means = {name: {source: fmean(values) for source, values in of.items()} for name, of in accuracies.items()}
    metrics = {f"val_{name}/test_acc/{source}": mean for name, of in means.items() for source, mean in of.items()}
    return metrics | general_means(means)


def general_means(accuracies: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The means over GENERAL_SETS; accuracies: strategy -> data source -> mean accuracy.

    <suffix>-mean: mean over the sets, where all of them have the suffix. best-mean of a strategy: mean over sets and
    groups of prompt styles of the best style, where a set has the whole group. best-mean of both strategies: mean over
    the sets of the best of all.
    """
    means = {}
    for strategy, sources in accuracies.items():
        for suffix in SUFFIXES:
            values = [sources[source] for name in GENERAL_SETS if (source := f"{name}-{suffix}") in sources]
            if len(values) == len(GENERAL_SETS):
                means[f"val_mean_{strategy}/test_acc/{suffix}-mean_{_NAMES}"] = fmean(values)
        best = [
            max(sources[f"{name}-{suffix}"] for suffix in group)
            for name in GENERAL_SETS
            for group in _BEST_OF
            if all(f"{name}-{suffix}" in sources for suffix in group)
        ]
        if best:
            means[f"val_mean_{strategy}/test_acc/best-mean_{_NAMES}"] = fmean(best)
    if {"sampling", "greedy"} <= accuracies.keys():
        everything = [(source, value) for sources in accuracies.values() for source, value in sources.items()]
        of_sets = [[value for source, value in everything if source.startswith(f"{name}-")] for name in GENERAL_SETS]
        if all(of_sets):
            means[f"val_mean/test_acc/best-mean_{_NAMES}"] = fmean(map(max, of_sets))
    return means
