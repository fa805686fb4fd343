"""The std filter: what it keeps, how its threshold moves, and that its state is all there is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_groups import scored_group

from megatron_rlpr.algorithm.std_filter import StdFilter, source_multipliers
from megatron_rlpr.config.schema import FilterConfig
from megatron_rlpr.types import UserError

EMA = FilterConfig(ema_ratio=0.9, ema_start_step=2, start_step=4, std_filter_beta=0.5)
FIXED = FilterConfig(mode="fixed", accuracy_lower_bound=0.2, accuracy_upper_bound=0.8)

group_stds = st.lists(st.lists(st.floats(0.0, 1.0), min_size=0, max_size=4), min_size=12, max_size=12)


def groups_with(stds: list[float]) -> list:
    """Two rewards a and -a have the unbiased std a * sqrt(2)."""
    return [scored_group([std / np.sqrt(2), -std / np.sqrt(2)]) for std in stds]


def play(std_filter: StdFilter, step: int, stds: list[float]) -> tuple[float, list[bool]]:
    """One step of one round: its threshold and what is kept."""
    std_filter.begin_step(step)
    threshold, keep = std_filter.threshold, std_filter.judge(groups_with(stds))
    std_filter.end_step()
    return threshold, keep


def test_the_threshold_follows_the_formula_of_the_specification() -> None:
    std_filter = StdFilter(EMA)
    assert play(std_filter, 1, [9.0]) == (0.0, [True])  # before ema_start_step: not collected
    assert play(std_filter, 2, [0.2, 0.4]) == (0.0, [True, True])
    assert play(std_filter, 3, [0.5]) == (0.0, [True])
    threshold, keep = play(std_filter, 4, [0.19, 0.21])
    assert threshold == pytest.approx(0.5 * (0.3 + 0.5) / 2)
    assert keep == [False, True]
    threshold, _ = play(std_filter, 5, [0.3])
    assert threshold == pytest.approx(0.5 * (0.9 * 0.4 + 0.1 * 0.2)), "groups that were dropped count"


def test_all_rounds_of_a_step_make_one_mean() -> None:
    std_filter = StdFilter(replace(EMA, start_step=3))
    std_filter.begin_step(2)
    for stds in ([0.1], [0.1, 0.7]):
        std_filter.judge(groups_with(stds))
    std_filter.end_step()
    std_filter.begin_step(3)
    assert std_filter.average == pytest.approx(0.3)


def test_a_step_that_judged_nothing_changes_nothing() -> None:
    std_filter = StdFilter(replace(EMA, start_step=3))
    play(std_filter, 2, [0.4])
    thresholds = [play(std_filter, step, stds)[0] for step, stds in ((3, [0.8]), (4, []), (5, []), (6, []))]
    assert thresholds[1:] == [thresholds[1]] * 3


def test_a_step_that_was_never_ended_still_counts_once() -> None:
    ended, broken_off = StdFilter(EMA), StdFilter(EMA)
    for std_filter in (ended, broken_off):
        std_filter.begin_step(2)
        std_filter.judge(groups_with([0.4, 0.6]))
    ended.end_step()
    for std_filter in (ended, broken_off):
        std_filter.begin_step(4)
    assert broken_off.average == ended.average == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_never_reaches_the_average_and_is_dropped_once_the_filter_acts(bad: float) -> None:
    strange = scored_group([bad, 0.0])
    quiet, std_filter = StdFilter(EMA), StdFilter(EMA)
    for step, stds in ((2, [0.2, 0.4]), (3, []), (4, [0.5, 0.1]), (5, [0.3]), (6, []), (7, [0.3])):
        quiet.begin_step(step), std_filter.begin_step(step)
        kept = quiet.judge(groups_with(stds))
        assert std_filter.judge([strange, *groups_with(stds)]) == [step < EMA.start_step, *kept]
        quiet.end_step(), std_filter.end_step()
        assert std_filter.state_dict() == quiet.state_dict(), "as if the group had not been there"
    for target in ("scoreB", "scoreB-scoreA", "final_reward_std"):
        fixed = StdFilter(replace(FIXED, target=target, accuracy_lower_bound=-1e9, accuracy_upper_bound=1e9))
        fixed.begin_step(1)
        assert fixed.judge([scored_group([bad, bad], reference=bad)]) == [False]


def test_a_group_without_a_finite_std_is_dropped_and_not_averaged() -> None:
    std_filter = StdFilter(replace(EMA, start_step=3))
    play(std_filter, 2, [0.4])
    std_filter.begin_step(3)
    assert std_filter.judge([*groups_with([0.4]), scored_group([float("nan"), 0.0])]) == [True, False]
    std_filter.end_step()
    std_filter.begin_step(4)
    assert std_filter.average == pytest.approx(0.4)


@given(stds=group_stds, stop=st.integers(0, 12))
def test_a_resumed_filter_goes_on_as_if_it_had_never_stopped(stds: list[list[float]], stop: int) -> None:
    whole, first = StdFilter(EMA), StdFilter(EMA)
    expected = [play(whole, step, values) for step, values in enumerate(stds, start=1)]
    got = [play(first, step, values) for step, values in enumerate(stds[:stop], start=1)]
    second = StdFilter(EMA)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [play(second, step, values) for step, values in enumerate(stds[stop:], start=stop + 1)]
    assert got == expected
    assert second.state_dict() == whole.state_dict()


@given(stds=group_stds)
def test_the_average_stays_between_the_stds_it_saw(stds: list[list[float]]) -> None:
    std_filter, seen = StdFilter(EMA), []
    for step, values in enumerate(stds, start=1):
        std_filter.begin_step(step)
        if std_filter.average is not None:
            assert min(seen) - 1e-9 <= std_filter.average <= max(seen) + 1e-9
        std_filter.judge(groups_with(values))
        seen += values if step >= EMA.ema_start_step else []


def test_fixed_bounds_hold_from_the_first_step() -> None:
    std_filter = StdFilter(FIXED)
    assert play(std_filter, 1, [0.1, 0.5, 0.9]) == (0.2, [False, True, False])
    assert std_filter.round_metrics == pytest.approx(
        {"filter/rate": 2 / 3, "filter/lower_rate": 1 / 3, "filter/upper_rate": 1 / 3}
    )


@pytest.mark.parametrize(
    ("target", "parts"),
    [("scoreB-scoreA", {"reference": 0.6, "base": 0.1}), ("scoreB", {"reference": 0.5}), ("vr_acc", {"accuracy": 0.5})],
)
def test_other_targets_judge_the_mean_of_their_part(target: str, parts: dict[str, float]) -> None:
    inside, outside = scored_group([0.0, 0.0], **parts), scored_group([0.5, -0.5])
    std_filter = StdFilter(replace(FIXED, target=target))
    std_filter.begin_step(1)
    assert std_filter.judge([inside, outside]) == [True, False]


def test_given_stds_replace_those_of_the_final_rewards() -> None:
    std_filter = StdFilter(FIXED)
    std_filter.begin_step(1)
    assert std_filter.judge(groups_with([0.5, 0.0]), stds=[0.0, 0.5]) == [False, True]


def test_a_source_multiplier_moves_the_target_but_not_the_average() -> None:
    multipliers = "maths_is_0.5+web_is_x_is_3"
    groups = [scored_group([0.3, -0.3], source=source) for source in ("maths", "web_is_x", "physics")]
    spread = 0.3 * np.sqrt(2)

    moving = StdFilter(replace(EMA, start_step=3, std_filter_beta_per_data_source=multipliers))
    moving.begin_step(2)
    moving.judge(groups)
    moving.end_step()
    moving.begin_step(3)
    assert moving.average == pytest.approx(spread)

    bounds = replace(FIXED, accuracy_lower_bound=spread * 0.9, accuracy_upper_bound=spread * 2)
    fixed = StdFilter(replace(bounds, std_filter_beta_per_data_source=multipliers))
    fixed.begin_step(1)
    assert fixed.judge(groups) == [False, False, True]


@pytest.mark.parametrize("enabled", [True, False])
def test_truncated_groups_are_dropped_with_or_without_the_bounds(enabled: bool) -> None:
    groups = [scored_group([0.5, -0.5], truncated=True), scored_group([0.5, -0.5])]
    std_filter = StdFilter(FilterConfig(mode="fixed", enabled=enabled, truncated=True))
    std_filter.begin_step(1)
    assert std_filter.judge(groups) == [False, True]


def test_a_disabled_filter_keeps_everything() -> None:
    std_filter = StdFilter(replace(FIXED, enabled=False))
    assert play(std_filter, 1, [0.0, 0.5, 9.0]) == (0.0, [True, True, True])


def test_a_group_of_one_is_never_flat() -> None:
    std_filter = StdFilter(replace(FIXED, accuracy_upper_bound=2.0))
    std_filter.begin_step(1)
    assert std_filter.judge([scored_group([0.7])]) == [True]


@pytest.mark.parametrize("text", ["maths", "maths_is_", "_is_2", "maths_is_two", "maths_is_1+"])
def test_a_malformed_multiplier_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="std_filter_beta_per_data_source"):
        source_multipliers(text)


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="another version"):
        StdFilter(EMA).load_state_dict({"ema": 0.1})
