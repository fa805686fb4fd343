"""A step's numbers under their documented names."""

from __future__ import annotations

import math

import pytest
from training_records import scored

from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import with_advantages
from megatron_rlpr.config.schema import Config
from megatron_rlpr.tracking.metric_names import REQUIRED, undocumented
from megatron_rlpr.tracking.step_metrics import (
    filter_metrics,
    log_prob_gap,
    reward_metrics,
    speed_metrics,
    update_metrics,
)
from megatron_rlpr.types import UpdateResult


def update(loss: float, tokens: int, **changes: float) -> UpdateResult:
    values = {
        "entropy": loss * 2,
        "clip_fraction": 0.5,
        "kl_to_old": 0.1,
        "grad_norm": 3.0,
        "computed_tokens": 30,
        "sequence_tokens": 40,
    }
    return UpdateResult(loss=loss, trained_tokens=tokens, **{**values, **changes})  # type: ignore[arg-type]


def test_means_are_over_responses_and_lengths_over_tokens() -> None:
    metrics = reward_metrics([scored(0, [0.0, 1.0], [1, 3]), scored(1, [2.0, -1.0], [5, 7], finish_reason="length")])
    assert metrics["reward/mean"] == pytest.approx(0.5)
    assert metrics["reward/std_per_group"] == pytest.approx((0.5**0.5 + 4.5**0.5) / 2)
    assert metrics["reward/reference_probability"] == pytest.approx(0.25)
    assert (metrics["reward/accuracy"], metrics["reward/splice_valid"], metrics["reward/repetition"]) == (
        0.25,
        0.5,
        -0.25,
    )
    assert [metrics[f"final_reward_dist/final_reward{bin}"] for bin in ("<0", "=0", "=1", ">1")] == [0.25] * 4
    assert [metrics[f"response_length/{what}"] for what in ("mean", "min", "max", "truncated_fraction")] == [
        4.0,
        1,
        7,
        0.5,
    ]


def test_the_gap_between_engine_and_actor_is_absolute_and_leaves_empty_responses_out() -> None:
    gap = log_prob_gap([scored(0, [0.0], [4], gap=0.5), scored(1, [0.0, 0.0], [0, 12], gap=-0.25)])
    assert gap == pytest.approx(
        {"rollout/log_prob_gap": 0.25 * 12 / 16 + 0.5 * 4 / 16, "rollout/log_prob_gap_max": 0.5}
    )
    assert log_prob_gap([scored(0, [0.0], [0])]) == {}


def test_losses_are_averaged_over_optimizer_steps_and_entropies_over_tokens() -> None:
    metrics = update_metrics([update(1.0, 30), update(3.0, 10, clip_fraction=0.1)], lr=0.1)
    assert (metrics["actor/loss"], metrics["actor/optimizer_steps"], metrics["actor/lr"]) == (2.0, 2, 0.1)
    assert metrics["actor/entropy"] == pytest.approx((2.0 * 30 + 6.0 * 10) / 40)
    assert metrics["actor/clip_fraction"] == pytest.approx(0.4)
    assert metrics["actor/shared_token_fraction"] == pytest.approx(0.25)


def test_a_skipped_step_is_counted() -> None:
    metrics = update_metrics(
        [update(1.0, 1), update(1.0, 1, grad_norm=math.inf), update(1.0, 1, grad_norm=math.nan)], lr=0.1
    )
    assert metrics["actor/skipped_steps"] == 2


def test_speed_counts_everything_that_was_generated() -> None:
    groups = [scored(0, [0.0, 1.0], [4, 6]), scored(1, [0.0], [10])]
    seconds = {"rollout": 2.0, "score": 1.0, "update": 0.5, "hand_over": 0.25, "step": 4.0}
    metrics = speed_metrics(seconds, groups, [update(1.0, 5)])
    assert metrics["tokens/s"] == pytest.approx((3 * 3 + 20) / 4)
    assert metrics["tokens/s_rollout"] == 10.0
    assert metrics["tokens/s_update"] == 60.0
    assert (metrics["time/step"], metrics["time/reward"]) == (4.0, 0.0)


@pytest.mark.parametrize("kept", [True, False])
def test_all_required_names_are_there_and_all_are_documented(kept: bool) -> None:
    """Also when the filter dropped everything and nothing was trained."""
    config = Config()
    std_filter, fill, groups = StdFilter(config.filter), BatchFill(1, 1), [scored(0, [0.0, 1.0], [4, 6])]
    fill.offer(groups, [kept])
    batch = with_advantages(fill.take()[0], config)
    metrics = {
        **reward_metrics(fill.history),
        **filter_metrics(std_filter, fill, batch, 3),
        **update_metrics([update(1.0, 10)] if kept else [], 0.1),
        **speed_metrics({"step": 1.0}, groups, []),
    }
    assert [name for name in REQUIRED if name not in metrics] == []
    assert undocumented(metrics) == []
    assert metrics["filter/kept_fraction"] == float(kept)
    assert metrics["filter/cached_prompts"] == 3
    assert metrics["filter/rate"] == 0.0, "no round was judged"
    assert (metrics["actor/loss"] is None) != kept
