"""Token loss, its aggregation, KL and learning rate: properties beyond the recorded cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.algorithm.aggregation import AGGREGATIONS, row_weights
from megatron_rlpr.algorithm.kl import KL_KINDS, AdaptiveKL, KLController, penalised_token_rewards, token_kl
from megatron_rlpr.algorithm.learning_rate import multiplier
from megatron_rlpr.algorithm.policy_loss import importance_weights, token_policy_loss
from megatron_rlpr.types import UserError


def gradient(ratio: float, advantage: float, dual_clip: float = 0.0) -> tuple[float, float, bool]:
    """(loss, d loss / d log_prob, clipped) of one token with clips 0.2 / 0.27."""
    log_prob = torch.tensor([np.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, clipped = token_policy_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.27, dual_clip)
    loss.sum().backward()
    assert log_prob.grad is not None
    return loss.item(), log_prob.grad.item(), bool(clipped)


def test_inside_the_clip_the_gradient_is_minus_advantage_times_ratio() -> None:
    assert gradient(1.1, 2.0) == (pytest.approx(-2.2), pytest.approx(-2.2), False)
    assert gradient(1.1, -2.0) == (pytest.approx(2.2), pytest.approx(2.2), False)


def test_a_ratio_that_went_far_enough_gets_no_gradient() -> None:
    assert gradient(1.5, 2.0) == (pytest.approx(-1.27 * 2), 0.0, True)
    assert gradient(0.5, -2.0) == (pytest.approx(0.8 * 2), 0.0, True)


def test_a_ratio_that_went_the_wrong_way_is_pulled_back() -> None:
    assert gradient(0.5, 2.0) == (pytest.approx(-1.0), pytest.approx(-1.0), False)
    assert gradient(3.0, -2.0) == (pytest.approx(6.0), pytest.approx(6.0), False)


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=20), st.floats(0.1, 10))
def test_an_importance_weight_is_the_ratio_of_the_policies_up_to_the_cap(
    pairs: list[tuple[float, float]], cap: float
) -> None:
    old = torch.tensor([old for old, _ in pairs], dtype=torch.float64, requires_grad=True)
    weights = importance_weights(old, torch.tensor([engine for _, engine in pairs], dtype=torch.float64), cap)
    assert weights.tolist() == pytest.approx([min(math.exp(old) / math.exp(engine), cap) for old, engine in pairs])
    assert not weights.requires_grad


def test_the_dual_clip_bounds_the_loss_of_negative_advantages_only() -> None:
    assert gradient(5.0, -2.0, dual_clip=3.0)[:2] == (pytest.approx(6.0), 0.0)
    assert gradient(2.0, -2.0, dual_clip=3.0)[:2] == (pytest.approx(4.0), pytest.approx(4.0))
    assert gradient(0.5, 2.0, dual_clip=3.0) == gradient(0.5, 2.0)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12), seed=st.integers(0, 9), cut=st.integers(0, 12))
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_weighted_sum_is_the_same_however_the_sequences_are_cut(
    mode: str, lengths: list[int], seed: int, cut: int
) -> None:
    losses = [np.random.RandomState(seed + i).randn(length) for i, length in enumerate(lengths)]
    weights = row_weights(lengths, mode, max_tokens=64)
    parts = [
        sum((w * row.sum() for w, row in zip(weights[s], losses[s], strict=True)), 0.0)
        for s in (slice(cut), slice(cut, None))
    ]
    direct = {
        "token-mean": np.concatenate(losses).mean(),
        "seq-mean-token-sum": np.mean([row.sum() for row in losses]) / 64,
        "seq-mean-token-mean": np.mean([row.mean() for row in losses]),
    }
    assert sum(parts) == pytest.approx(direct[mode], abs=1e-9)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_empty_sequences_and_empty_batches_weigh_nothing(mode: str) -> None:
    assert row_weights([0, 4, 0], mode, 8)[[0, 2]].tolist() == [0.0, 0.0]
    assert row_weights([0, 0], mode, 8).tolist() == [0.0, 0.0]
    assert row_weights([], mode, 8).tolist() == []


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(UserError, match="loss_agg_mode"):
        row_weights([3], "mean", 8)


@given(log_prob=st.floats(-8.0, 0.0), reference=st.floats(-8.0, 0.0))
@pytest.mark.parametrize("kind", ["abs", "mse", "low_var_kl"])
def test_a_kl_estimate_is_not_negative_and_zero_for_equal_policies(
    kind: str, log_prob: float, reference: float
) -> None:
    assert token_kl(torch.tensor(log_prob), torch.tensor(reference), kind) >= -1e-6
    assert token_kl(torch.tensor(log_prob), torch.tensor(log_prob), kind) == 0.0


@pytest.mark.parametrize("kind", KL_KINDS)
def test_a_kl_in_the_reward_is_paid_token_by_token(kind: str) -> None:
    log_probs, reference = np.array([-1.0, -0.5], dtype=np.float32), np.array([-1.2, -0.1], dtype=np.float32)
    kl = token_kl(torch.from_numpy(log_probs), torch.from_numpy(reference), kind).numpy()
    rewards, mean = penalised_token_rewards(0.8, log_probs, reference, 0.5, kind)
    assert rewards == pytest.approx([-0.5 * kl[0], 0.8 - 0.5 * kl[1]], abs=1e-6)
    assert mean == pytest.approx(kl.mean(), abs=1e-6)


def test_an_empty_response_has_no_token_to_reward() -> None:
    empty = np.zeros(0, dtype=np.float32)
    rewards, mean = penalised_token_rewards(0.8, empty, empty, 0.5, "kl")
    assert len(rewards) == 0
    assert mean == 0.0


def test_the_controllers_resume_with_their_coefficient() -> None:
    controller, resumed = AdaptiveKL(0.1, 1.0, 100.0), AdaptiveKL(0.1, 1.0, 100.0)
    controller.update([2.0] * 10)
    assert controller.value == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    resumed.load_state_dict(controller.state_dict())
    assert resumed.value == controller.value
    controller.update([])
    assert resumed.value == controller.value

    fixed = KLController(0.3)
    fixed.update([5.0])
    fixed.load_state_dict(fixed.state_dict())
    assert fixed.value == 0.3


styles = st.sampled_from(["constant", "linear", "cosine"])


@given(warmup=st.integers(0, 10), total=st.integers(11, 40), style=styles, low=st.floats(0.0, 1.0))
def test_the_learning_rate_rises_to_one_and_then_never_rises(warmup: int, total: int, style: str, low: float) -> None:
    rates = [
        multiplier(k, warmup_steps=warmup, total_steps=total, style=style, min_ratio=low) for k in range(total + 5)
    ]
    assert max(rates) == rates[max(warmup - 1, 0)] == 1.0
    assert rates[:warmup] == pytest.approx([(k + 1) / warmup for k in range(warmup)])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if style == "constant":
        assert set(rates[warmup:]) == {1.0}
    else:
        assert rates[total - 1 :] == pytest.approx([low] * 6)


def test_linear_decay_falls_along_a_line() -> None:
    rates = [multiplier(k, total_steps=5, style="linear", min_ratio=0.2) for k in range(5)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_run_of_one_step_has_the_full_rate() -> None:
    assert multiplier(0, total_steps=1, style="cosine") == 1.0


def test_a_decay_without_room_or_name_is_refused() -> None:
    with pytest.raises(UserError, match="lr_warmup_steps=5"):
        multiplier(6, warmup_steps=5, total_steps=5, style="cosine")
    with pytest.raises(UserError, match="'step'"):
        multiplier(6, style="step")
