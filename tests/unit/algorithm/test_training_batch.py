"""Scored groups become the sequences of an update: the right tokens, advantages and weights, in order."""

from __future__ import annotations

import numpy as np
import pytest
from training_records import scored

from megatron_rlpr.algorithm.training_batch import filter_stds, loss_weights, mini_batches, with_advantages
from megatron_rlpr.config.schema import Config


@pytest.fixture
def config() -> Config:
    config = Config()
    config.data.max_response_length = 8
    return config


def test_a_sequence_is_prompt_and_response_with_the_response_trained(config: Config) -> None:
    batch = with_advantages([scored(4, [0.0, 1.0], [2, 5])], config)
    ((first, second),) = mini_batches(batch, 0)
    assert first.token_ids == (40, 41, 42, 500, 501)
    assert (first.start, first.stop, second.start, second.stop) == (3, 5, 3, 8)
    np.testing.assert_allclose(second.old_log_probs, -np.arange(1, 6) / 7, rtol=1e-6)
    np.testing.assert_allclose(first.advantages, [-(0.5**0.5)] * 2, rtol=1e-5)
    np.testing.assert_allclose(second.advantages, [0.5**0.5] * 5, rtol=1e-5)
    assert first.reference_log_probs is None


def test_the_store_gets_one_advantage_a_response_and_none_where_a_group_was_not_trained_on(config: Config) -> None:
    trained, empty, left = scored(4, [0.0, 1.0], [2, 5]), scored(5, [0.0, 1.0], [0, 3]), scored(6, [0.0, 1.0], [1, 1])
    batch = with_advantages([trained, empty], config)
    first = batch.first_advantages([left, empty, trained])
    assert first[0] is None
    assert first[1:] == [[0.0, pytest.approx(0.5**0.5, rel=1e-5)], pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)]


@pytest.mark.parametrize(("size", "groups"), [(0, [3]), (1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_mini_batches_cut_the_batch_at_groups(config: Config, size: int, groups: list[int]) -> None:
    batch = with_advantages([scored(index, [0.0, 1.0], [1, 2]) for index in range(3)], config)
    cut = mini_batches(batch, size)
    assert [len(sequences) for sequences in cut] == [2 * count for count in groups]
    assert [s.token_ids[0] for sequences in cut for s in sequences] == [0, 0, 10, 10, 20, 20]


def test_a_step_that_kept_nothing_has_no_mini_batch(config: Config) -> None:
    assert mini_batches(with_advantages([], config), 2) == []


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("token-mean", [1 / 8, 1 / 8]),
        ("seq-mean-token-sum", [1 / 16, 1 / 16]),
        ("seq-mean-token-mean", [1 / 4, 1 / 12]),
    ],
)
def test_weights_follow_the_aggregation(config: Config, mode: str, weights: list[float]) -> None:
    config.algorithm.loss_agg_mode = mode  # type: ignore[assignment]
    (sequences,) = mini_batches(with_advantages([scored(0, [0.0, 1.0], [2, 6])], config), 0)
    assert loss_weights(sequences, config) == pytest.approx(weights)


def test_a_kl_in_the_loss_reaches_the_sequences_and_leaves_the_rewards(config: Config) -> None:
    groups = [scored(0, [0.0, 1.0], [2, 3])]
    reference = [[np.full(2, -0.5, np.float32), np.full(3, -0.25, np.float32)]]
    plain, with_kl = with_advantages(groups, config), with_advantages(groups, config, reference, 0.3)
    for a, b in zip(plain.advantages[0], with_kl.advantages[0], strict=True):
        np.testing.assert_array_equal(a, b)
    (sequences,) = mini_batches(with_kl, 0)
    assert [s.reference_log_probs.tolist() for s in sequences if s.reference_log_probs is not None] == [
        [-0.5] * 2,
        [-0.25] * 3,
    ]
    assert with_kl.response_kls == ()


def test_a_kl_in_the_reward_lowers_the_reward_of_what_moved_away(config: Config) -> None:
    config.algorithm.use_kl_loss = False
    config.algorithm.kl_loss_type = "kl"
    group = scored(0, [1.0, 1.0], [2, 2])
    reference = [[group.scores[0].log_probs, group.scores[1].log_probs - 1.0]]
    batch = with_advantages([group], config, reference, 0.5)
    assert batch.response_kls == pytest.approx([0.0, 1.0])
    assert batch.advantages[0][0][0] > 0 > batch.advantages[0][1][0]


def test_the_filter_sees_the_spread_of_a_mixed_reward(config: Config) -> None:
    groups = [scored(0, [0.0, 1.0], [1, 1])]
    assert filter_stds(groups, config) is None
    config.algorithm.adv_estimator = "prstd_vrstd"
    assert filter_stds(groups, config) == pytest.approx([0.25 / 2**0.5])


def test_greedy_baselines_belong_to_their_group(config: Config) -> None:
    config.algorithm.adv_estimator = "remax"
    batch = with_advantages(
        [scored(0, [0.0, 1.0], [1, 1]), scored(1, [0.0, 1.0], [1, 1])], config, baselines=[0.25, 1.0]
    )
    assert [[float(a[0]) for a in group] for group in batch.advantages] == [[-0.25, 0.75], [-1.0, 0.0]]
