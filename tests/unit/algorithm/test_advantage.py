"""Advantages: what every estimator promises, whatever the rewards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.algorithm.advantage import (
    ADVANTAGES,
    EstimatorOptions,
    GroupRewards,
    estimate_advantages,
    flat_share,
    returns_to_go,
    whiten,
)
from megatron_rlpr.types import UserError

PLAIN = EstimatorOptions()
reward_lists = st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=8)


def group(rewards: list[float], length: int = 3) -> GroupRewards:
    parts = np.array(rewards)
    return GroupRewards.at_the_end(rewards, [length] * len(rewards), parts, parts, np.zeros(len(rewards)))


@given(rewards=reward_lists)
@pytest.mark.parametrize("name", ["grpo", "grpo_nostd", "rloo", "prnostd_vrstd", "prstd_vrstd"])
def test_group_advantages_sum_to_zero_and_keep_the_order_of_the_rewards(name: str, rewards: list[float]) -> None:
    (result,) = estimate_advantages(name, [group(rewards)], PLAIN)
    values = np.array([tokens[0] for tokens in result.tokens], dtype=np.float64)
    assert values.sum() == pytest.approx(0.0, abs=1e-3)
    order = np.argsort(rewards)
    assert (np.diff(values[order]) >= -1e-6).all()


@given(rewards=reward_lists, shift=st.floats(-3.0, 3.0), scale=st.floats(0.5, 4.0))
def test_grpo_does_not_see_shift_and_scale_of_the_rewards(rewards: list[float], shift: float, scale: float) -> None:
    if np.std(rewards) < 1e-2:
        return
    (plain,) = estimate_advantages("grpo", [group(rewards)], PLAIN)
    (moved,) = estimate_advantages("grpo", [group([scale * r + shift for r in rewards])], PLAIN)
    np.testing.assert_allclose(np.stack(moved.tokens), np.stack(plain.tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_tokens_match_the_lengths_of_the_responses(name: str) -> None:
    parts = np.array([0.1, 0.9])
    groups = [GroupRewards.at_the_end([0.1, 0.9], lengths, parts, parts, parts) for lengths in ([4, 1], [2, 0])]
    results = estimate_advantages(name, groups, PLAIN)
    assert [[len(tokens) for tokens in result.tokens] for result in results] == [[4, 1], [2, 0]]
    assert all(tokens.dtype == np.float32 for result in results for tokens in result.tokens)


@pytest.mark.parametrize("name", ["grpo", "grpo_nostd"])
def test_a_flat_group_gives_no_signal(name: str) -> None:
    results = estimate_advantages(name, [group([0.7, 0.7, 0.7]), group([0.0, 1.0])], PLAIN)
    assert all((tokens == 0.0).all() for tokens in results[0].tokens)
    assert flat_share(name, results) == pytest.approx(3 / 5)


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    (result,) = estimate_advantages("rloo", [group([1.0, 2.0, 6.0])], PLAIN)
    assert [tokens[0] for tokens in result.tokens] == pytest.approx([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5])


def test_a_group_of_one_keeps_its_reward() -> None:
    for name in ("grpo", "grpo_nostd", "rloo"):
        (result,) = estimate_advantages(name, [group([0.6])], PLAIN)
        assert result.tokens[0] == pytest.approx([0.6] * 3, rel=1e-5)


def test_token_rewards_before_the_last_token_count() -> None:
    token_rewards = (np.array([-0.1, -0.2, 1.0]), np.array([-0.3, 0.5]))
    assert GroupRewards(token_rewards).totals == pytest.approx([0.7, 0.2])
    assert returns_to_go(token_rewards[0], 0.5) == pytest.approx([-0.1 + 0.5 * (-0.2 + 0.5 * 1.0), -0.2 + 0.5, 1.0])


@given(rows=st.lists(st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=6), min_size=2, max_size=5))
def test_whitened_values_have_mean_zero_and_at_most_unit_variance(rows: list[list[float]]) -> None:
    values = np.concatenate(whiten([np.array(row) for row in rows]))
    assert values.mean() == pytest.approx(0.0, abs=1e-6)
    assert values.var(ddof=1) <= 1.0 + 1e-9


def test_one_value_alone_is_whitened_to_zero() -> None:
    assert whiten([np.array([3.0])])[0] == pytest.approx([0.0])


def test_missing_parts_are_named() -> None:
    bare = [GroupRewards.at_the_end([0.1, 0.9], [2, 2])]
    with pytest.raises(ValueError, match="greedy response"):
        estimate_advantages("remax", bare, PLAIN)
    with pytest.raises(ValueError, match="probability rewards"):
        estimate_advantages("prstd_vrstd", bare, PLAIN)


def test_an_unknown_estimator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"adv_estimator: 'gae'.*grpo"):
        estimate_advantages("gae", [], PLAIN)
