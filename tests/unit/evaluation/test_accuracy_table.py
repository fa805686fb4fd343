"""Means over groups of benchmarks, their intervals, pass@k, and the table that shows them."""

from __future__ import annotations

import io
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.data.sources import GENERAL_SETS, benchmark_group
from megatron_rlpr.evaluation.accuracy_table import accuracy_rows, accuracy_table, group_means
from megatron_rlpr.evaluation.held_out import ValidationResult
from megatron_rlpr.evaluation.intervals import Interval, mean_interval, mean_of_independent, share_interval
from megatron_rlpr.evaluation.pass_at_k import mean_pass_at_k, pass_at_k
from megatron_rlpr.evaluation.validation_metrics import validation_metrics
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.metric_names import undocumented


def result(source: str, accuracies: list[float], samples: int = 1) -> ValidationResult:
    values = {"format": [1.0] * len(accuracies), "accuracy": accuracies}
    return ValidationResult(source, "sampling", values, 9.5, (source,) * len(accuracies), {}, samples)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations(range(n), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(min(draw) < right for draw in draws) / len(draws))
    assert mean_pass_at_k(n, [right, 0])[1] == pytest.approx(right / n / 2)


def test_pass_at_k_is_given_for_powers_of_two_and_all_answers() -> None:
    assert list(mean_pass_at_k(6, [1])) == [1, 2, 4, 6]
    assert result("s", [0.5, 0.0], samples=2).pass_at_k == {1: 0.25, 2: 0.5}
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_one_answer_a_prompt_has_wilsons_interval_and_several_are_clustered_by_prompt() -> None:
    wilson = share_interval([1.0, 0.0, 0.0, 0.0])
    assert (wilson.low, wilson.high) == pytest.approx((0.0456, 0.6994), abs=1e-4)
    clustered = share_interval([0.5, 0.0, 0.0, 0.25])
    student = mean_interval([0.5, 0.0, 0.0, 0.25])
    assert student.low < 0 == clustered.low
    assert clustered.high == student.high


def test_the_interval_of_a_mean_of_equal_means_shrinks_with_the_root_of_their_number() -> None:
    mean = mean_of_independent([Interval(0.5, 0.4, 0.7)] * 4)
    assert (mean.mean, mean.low, mean.high) == pytest.approx((0.5, 0.45, 0.6))
    assert mean_of_independent([Interval(0.2, 0.1, 0.4)]) == Interval(0.2, pytest.approx(0.1), pytest.approx(0.4))


def test_every_set_of_the_paper_is_in_its_group() -> None:
    assert {benchmark_group(name) for name in GENERAL_SETS} == {"general"}
    maths = ("Math-500_Avg2", "Minerva_Avg4", "AIME2024_Avg16", "openai/gsm8k")
    assert {benchmark_group(name) for name in maths} == {"maths"}
    assert benchmark_group("quickstart/unit") is None


def test_sets_weigh_the_same_in_the_means_and_a_mean_of_one_is_none() -> None:
    results = [result("MMLUPro-1000_Avg2", [1.0, 0.0]), result("TheoremQA_Avg2", [0.0] * 8), result("Minerva", [1.0])]
    means = group_means(results)
    assert {key: mean.mean for key, mean in means.items()} == pytest.approx(
        {("sampling", "general"): 0.25, ("sampling", "all"): 0.5}
    )
    metrics = validation_metrics(results)
    assert metrics["val_sampling/mean_acc/general"] == pytest.approx(0.25)
    assert metrics["val_sampling/mean_acc_low/all"] < 0.5 < metrics["val_sampling/mean_acc_high/all"]
    assert metrics["val_sampling/test_acc_low/Minerva"] == metrics["val/Minerva/sampling/accuracy_low"]
    assert undocumented(metrics) == []
    assert all(map(math.isfinite, metrics.values()))


def test_the_table_shows_accuracies_with_intervals() -> None:
    printed = io.StringIO()
    results = [result("MMLUPro-1000_Avg2", [0.5, 1.0], samples=2), result("TheoremQA_Avg2", [0.0, 0.0], samples=2)]
    Console(file=printed).table(accuracy_table(accuracy_rows(results), 40, "runs/a/validation/step_000040"))
    text = printed.getvalue()
    assert "Accuracy after step 40" in text
    (line,) = (line for line in text.splitlines() if "MMLUPro" in line)
    for shown in ("2 x 2", "0.750 [0.000, 1.000]", "@2 1.000", "9.5"):
        assert shown in line
    assert "mean of general reasoning" in text
    assert "0.375 [" in text
