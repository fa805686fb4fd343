"""Means over the general benchmarks, worked by hand."""

from __future__ import annotations

import pytest

from megatron_rlpr.data.sources import GENERAL_SETS
from megatron_rlpr.evaluation.validation_metrics import general_means

SETS = "+".join(GENERAL_SETS)


def all_sets(suffix: str, values: list[float]) -> dict[str, float]:
    return {f"{name}-{suffix}": value for name, value in zip(GENERAL_SETS, values, strict=True)}


def test_a_suffix_mean_needs_all_four_sets() -> None:
    whole = all_sets("OC", [0.1, 0.2, 0.3, 0.4])
    assert general_means({"greedy": whole}) == {f"val_mean_greedy/test_acc/OC-mean_{SETS}": pytest.approx(0.25)}
    whole.popitem()
    assert general_means({"greedy": whole}) == {}


def test_the_best_mean_averages_the_best_style_of_every_group_a_set_has() -> None:
    sources = all_sets("OC", [0.1, 0.2, 0.3, 0.4]) | all_sets("SysR1", [0.5, 0.1, 0.1, 0.5])
    # per set: max(OC, SysR1), then SysR1 alone
    expected = (0.5 + 0.5 + 0.2 + 0.1 + 0.3 + 0.1 + 0.5 + 0.5) / 8
    assert general_means({"sampling": sources})[f"val_mean_sampling/test_acc/best-mean_{SETS}"] == pytest.approx(
        expected
    )


def test_with_both_strategies_the_best_of_all_is_averaged() -> None:
    accuracies = {"sampling": all_sets("R1", [0.1, 0.2, 0.3, 0.4]), "greedy": all_sets("R1", [0.2, 0.1, 0.4, 0.3])}
    assert general_means(accuracies)[f"val_mean/test_acc/best-mean_{SETS}"] == pytest.approx(
        (0.2 + 0.2 + 0.4 + 0.4) / 4
    )


def test_bare_names_have_no_means() -> None:
    assert (
        general_means({"sampling": dict.fromkeys(GENERAL_SETS, 0.5), "greedy": dict.fromkeys(GENERAL_SETS, 0.5)}) == {}
    )
