"""Scored groups -> the sequences the policy trains on, with their advantages and loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_rlpr.algorithm.advantage import EstimatorOptions, GroupRewards, estimate_advantages, flat_share
from megatron_rlpr.algorithm.aggregation import row_weights
from megatron_rlpr.config import Config
from megatron_rlpr.scoring import response_request
from megatron_rlpr.types import FloatArray, ScoredGroup, TrainSequence


@dataclass(frozen=True)
class TrainingBatch:
    """One step's groups and, in the same order, every response's token advantages."""

    groups: tuple[ScoredGroup, ...]
    advantages: tuple[tuple[FloatArray, ...], ...]
    flat_share: float | None


def with_advantages(groups: Sequence[ScoredGroup], config: Config) -> TrainingBatch:
    """Estimate the advantages of a whole batch (algorithm.adv_estimator)."""
    name = config.algorithm.adv_estimator
    options = EstimatorOptions(config.algorithm.gamma, config.reward.pr_weight, config.reward.vr_weight)
    estimated = estimate_advantages(name, [_group_rewards(g) for g in groups], options)
    return TrainingBatch(tuple(groups), tuple(a.tokens for a in estimated), flat_share(name, estimated))


def mini_batches(batch: TrainingBatch, prompts_per_step: int) -> list[list[TrainSequence]]:
    """The batch cut into optimizer steps of `prompts_per_step` prompts (0: one step), in order."""
    size = prompts_per_step or max(len(batch.groups), 1)
    return [
        [sequence for i in range(start, min(start + size, len(batch.groups))) for sequence in _sequences(batch, i)]
        for start in range(0, len(batch.groups), size)
    ]


def loss_weights(sequences: Sequence[TrainSequence], config: Config) -> list[float]:
    """Weight of every token of each sequence in the mini-batch's loss (algorithm.loss_agg_mode)."""
    lengths = [s.stop - s.start for s in sequences]
    return [float(w) for w in row_weights(lengths, config.algorithm.loss_agg_mode, config.data.max_response_length)]


def _group_rewards(group: ScoredGroup) -> GroupRewards:
    probability = np.array([r.reference_probability - r.base_probability for r in group.rewards])
    graded = np.array([r.accuracy for r in group.rewards])
    lengths = [len(r.token_ids) for r in group.group.responses]
    return GroupRewards.at_the_end(group.final_rewards, lengths, probability, graded)


def _sequences(batch: TrainingBatch, index: int) -> list[TrainSequence]:
    scored, advantages = batch.groups[index], batch.advantages[index]
    sequences = []
    for response, scores, advantage in zip(scored.group.responses, scored.scores, advantages, strict=True):
        request = response_request(scored.group.prompt, response.token_ids)
        sequences.append(TrainSequence(request.token_ids, request.start, request.stop, scores.log_probs, advantage))
    return sequences
