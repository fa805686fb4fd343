"""Scored groups -> the sequences the policy trains on, with their advantages and loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_rlpr.algorithm.advantage import (
    MIXED_REWARD_ESTIMATORS,
    EstimatorOptions,
    GroupRewards,
    estimate_advantages,
    flat_share,
)
from megatron_rlpr.algorithm.aggregation import row_weights
from megatron_rlpr.algorithm.kl import penalised_token_rewards
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import FloatArray, ScoredGroup, ScoreRequest, TrainSequence


@dataclass(frozen=True)
class TrainingBatch:
    """One step's groups and, in the same order, every response's token advantages and reference log-probs (if any).

    response_kls: mean token KL of every response, with a KL in the reward only.
    """

    groups: tuple[ScoredGroup, ...]
    advantages: tuple[tuple[FloatArray, ...], ...]
    reference_log_probs: tuple[tuple[FloatArray, ...], ...] | None
    flat_share: float | None
    response_kls: tuple[float, ...]

    def first_advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float] | None]:
        """Per group the advantage at each response's first token, 0 for an empty one; None beyond the batch."""
        of_group = {
            id(group): [float(tokens[0]) if len(tokens) else 0.0 for tokens in advantages]
            for group, advantages in zip(self.groups, self.advantages, strict=True)
        }
        return [of_group.get(id(group)) for group in groups]


def with_advantages(
    groups: Sequence[ScoredGroup],
    config: Config,
    reference: Sequence[Sequence[FloatArray]] | None = None,
    kl_coefficient: float = 0.0,
    baselines: Sequence[float] | None = None,
) -> TrainingBatch:
    """Estimate the advantages of a whole batch (algorithm.adv_estimator).

    reference: the reference policy's log-probs of every response, per group, when the run has one. kl_coefficient: of a
    KL in the reward (algorithm.use_kl_loss=false). baselines: per group, the reward of the greedy response (remax).
    """
    name = config.algorithm.adv_estimator
    rewards, kls = [], []
    for number, group in enumerate(groups):
        of_reference = reference[number] if reference else None
        token_rewards, group_kls = _token_rewards(group, config, of_reference, kl_coefficient)
        baseline = None if baselines is None else np.full(len(group.rewards), baselines[number])
        rewards.append(GroupRewards(token_rewards, *mixed_parts(group), baseline))
        kls += group_kls
    estimated = estimate_advantages(name, rewards, estimator_options(config))
    tokens = tuple(a.tokens for a in estimated)
    stored = None if reference is None else tuple(tuple(rows) for rows in reference)
    return TrainingBatch(tuple(groups), tokens, stored, flat_share(name, estimated), tuple(kls))


def filter_stds(groups: Sequence[ScoredGroup], config: Config) -> list[float] | None:
    """The spread of each group as a mixed-reward estimator sees it; None where it is that of the final rewards."""
    name = config.algorithm.adv_estimator
    if name not in MIXED_REWARD_ESTIMATORS:
        return None
    rewards = [
        GroupRewards.at_the_end(g.final_rewards, [len(r.token_ids) for r in g.group.responses], *mixed_parts(g))
        for g in groups
    ]
    return [estimate.std for estimate in estimate_advantages(name, rewards, estimator_options(config))]


def estimator_options(config: Config) -> EstimatorOptions:
    """The constants of the estimators."""
    return EstimatorOptions(config.algorithm.gamma, config.reward.pr_weight, config.reward.vr_weight)


def mixed_parts(group: ScoredGroup) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(probability rewards, graded rewards), float64 [n] each."""
    return np.array([r.probability_reward for r in group.rewards]), np.array([r.graded_reward for r in group.rewards])


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


def _token_rewards(
    group: ScoredGroup, config: Config, reference: Sequence[FloatArray] | None, kl_coefficient: float
) -> tuple[tuple[npt.NDArray[np.floating], ...], list[float]]:
    """Per response the reward at every token, and its mean KL where the KL is in the reward."""
    if reference is None or config.algorithm.use_kl_loss:
        lengths = [len(r.token_ids) for r in group.group.responses]
        return GroupRewards.at_the_end(group.final_rewards, lengths).token_rewards, []
    estimator = config.algorithm.kl_loss_type
    penalised = [
        penalised_token_rewards(float(reward), scores.log_probs, log_probs, kl_coefficient, estimator)
        for reward, scores, log_probs in zip(group.final_rewards, group.scores, reference, strict=True)
    ]
    return tuple(tokens for tokens, _ in penalised), [kl for _, kl in penalised]


def _sequences(batch: TrainingBatch, index: int) -> list[TrainSequence]:
    scored, advantages = batch.groups[index], batch.advantages[index]
    no_reference: Sequence[FloatArray | None] = [None] * len(advantages)
    references = batch.reference_log_probs[index] if batch.reference_log_probs else no_reference
    sequences = []
    for response, scores, advantage, reference in zip(
        scored.group.responses, scored.scores, advantages, references, strict=True
    ):
        row = ScoreRequest.of_response(scored.group.prompt, response.token_ids)
        engine = np.asarray(response.engine_log_probs, dtype=np.float32) if len(response.engine_log_probs) else None
        parts = (scores.log_probs, advantage, reference, engine)
        sequences.append(TrainSequence(row.token_ids, row.start, row.stop, *parts))
    return sequences
