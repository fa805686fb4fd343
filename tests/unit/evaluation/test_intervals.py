"""Means, their intervals and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.evaluation.intervals import mean_interval, paired_difference

finite = st.floats(-1e3, 1e3, allow_nan=False)


def test_zero_one_values_get_wilsons_interval() -> None:
    # 15 right of 50: worked by hand from the score equation (p - m)^2 = z^2 p (1 - p) / n
    interval = mean_interval([1.0] * 15 + [0.0] * 35)
    z, n, m = 1.959964, 50, 0.3
    for bound in (interval.low, interval.high):
        assert (bound - m) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, rel=1e-5)
    assert interval.mean == pytest.approx(0.3)


def test_all_wrong_is_not_certainly_zero() -> None:
    interval = mean_interval([0.0] * 20)
    assert interval.low == 0.0
    assert 0.1 < interval.high < 0.2


def test_real_values_get_students_interval() -> None:
    # t(0.975, 4 degrees) = 2.776445, s = sqrt(0.025)
    interval = mean_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert interval.high - interval.mean == pytest.approx(2.776445 * math.sqrt(0.025 / 5), rel=1e-6)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)


def test_students_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = sum(
        interval.low <= 0.5 <= interval.high
        for interval in (mean_interval(rng.uniform(size=8).tolist()) for _ in range(2000))
    )
    assert 0.93 < covered / 2000 < 0.97


def test_pairing_removes_the_spread_between_prompts() -> None:
    before = [0.0, 0.2, 0.4, 0.6, 0.8]
    after = [0.11, 0.29, 0.51, 0.69, 0.91]
    interval = paired_difference(before, after)
    assert interval.mean == pytest.approx(0.102)
    assert interval.low > 0
    assert paired_difference(before, [0.2, 0.0, 0.6, 0.4, 0.8]).low < 0


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=30))
def test_a_paired_difference_turns_its_sign_with_the_order(pairs: list[tuple[float, float]]) -> None:
    forward = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    backward = paired_difference([b for _, b in pairs], [a for a, _ in pairs])
    assert (forward.mean, forward.low, forward.high) == pytest.approx((-backward.mean, -backward.high, -backward.low))


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from([0.0, 1.0]), finite), min_size=1, max_size=30))
def test_the_mean_lies_in_its_interval(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.low <= interval.mean <= interval.high


def test_one_value_says_nothing_about_the_spread() -> None:
    assert mean_interval([0.3]).high == math.inf


def test_no_values_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="1 values before, 2 after"):
        paired_difference([1.0], [1.0, 2.0])
