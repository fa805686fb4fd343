"""Aggregations of log-probabilities and the shaping of their difference to the base probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.reward.probability import AGGREGATIONS, aggregate, round_to_bfloat16
from megatron_rlpr.reward.shaping import discrete_function, shaping_function
from megatron_rlpr.types import UserError

log_probs = st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=20).map(
    lambda values: np.array(values, dtype=np.float32)
)


@settings(deadline=None)
@given(values=log_probs)
def test_the_mean_probability_lies_between_likelihood_and_best_token(values: np.ndarray) -> None:
    mean, likelihood, geometric = (
        aggregate(values, name) for name in ("mean_exp_log_softmax", "exp_sum_log_softmax", "exp_mean_log_softmax")
    )
    assert 0 <= likelihood <= geometric + 1e-12 <= mean + 1e-9 <= math.exp(values.max()) + 2e-9


def test_nothing_scored_is_zero_for_every_aggregation() -> None:
    for name in AGGREGATIONS:
        assert aggregate(np.zeros(0, dtype=np.float32), name) == 0.0


def test_the_added_token_counts_half_at_most() -> None:
    certain = np.zeros(2, dtype=np.float32)
    assert aggregate(certain, "mean_exp_log_softmax", cap_last=True) == pytest.approx(0.75)
    assert certain[-1] == 0, "the scores are not changed"


@settings(deadline=None)
@given(value=st.floats(-(2.0**100), 2.0**100, width=32))
def test_rounding_is_bfloat16s(value: float) -> None:
    assert round_to_bfloat16(value) == torch.tensor(value, dtype=torch.float32).to(torch.bfloat16).item()


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("identity", -0.25, -0.25),
        ("one_minus", 0.25, 0.75),
        ("threshold_0", -0.1, 0.0),
        ("threshold_0", 0.1, 0.1),
        ("threshold_anything_0.5", 0.4, 0.0),
        ("leaky_0.05", -1.0, -0.01),
        ("sigmoid_0", 0.0, 0.5),
        ("sigmoid_1000", -1.0, 0.0),
        ("comp_threshold_0.1_sigmoidv3_4", 1.0, 1.0),
        ("comp_threshold_0.1_sigmoidv2fixed_4", 0.05, 0.0),
    ],
)
def test_shaped_difference(name: str, x: float, expected: float) -> None:
    assert shaping_function(name)(x, 0) == pytest.approx(expected, abs=1e-12)


def test_random_shaping_repeats_for_a_seed_and_ignores_the_difference() -> None:
    shape = shaping_function("random")
    draws = [shape(0.5, seed) for seed in range(200)]
    assert draws == [shape(-0.5, seed) for seed in range(200)]
    assert 0 <= min(draws) < 0.1
    assert 0.9 < max(draws) < 1


@pytest.mark.parametrize(
    "name", ["", "relu", "threshold", "threshold_x", "sigmoid_", "comp_threshold_0.3_relu_2", "bin_3"]
)
def test_unknown_shaping_names_are_refused_with_the_key(name: str) -> None:
    with pytest.raises(UserError, match=r"reward\.shaping_function_name"):
        shaping_function(name)


@pytest.mark.parametrize("name", ["bin_0", "bin_", "bin_-2", "tenths"])
def test_unknown_discrete_names_are_refused_with_the_key(name: str) -> None:
    with pytest.raises(UserError, match=r"reward\.discrete_function_name"):
        discrete_function(name)
