"""The policy in one precision after the other: what it gives the reference answers, and what an update would change."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.algorithm.advantage import EstimatorOptions, GroupRewards, estimate_advantages
from megatron_rlpr.config.schema import ActorConfig, RewardConfig
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.types import DoubleArray, FloatArray, RolloutGroup, ScoreRequest, TokenScores, TrainSequence
from tools.bench import policy as bench_policy

REFERENCE = "bf16"
PRECISIONS: dict[str, dict[str, Any]] = {
    REFERENCE: {"dtype": "bfloat16"},
    "fp32": {"dtype": "float32"},
    **{
        recipe: {"dtype": "bfloat16", "fp8": "hybrid", "fp8_recipe": recipe}
        for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")
    },
}
"""The first is what the others are compared with."""

_TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.0, kl_coef=0.0, kl_type="low_var_kl")


Gradient = tuple[torch.Tensor, ...]
"""fp32, one tensor per parameter."""


@dataclass(frozen=True)
class Measured:
    """probabilities: of the reference answer by every response, nan where it could not be spliced in. gradient: with
    old log-probs of the same precision, so that every ratio is 1; mixed_gradient: with those of the reference
    precision. seconds: for all of it."""

    probabilities: DoubleArray
    gradient: Gradient
    mixed_gradient: Gradient
    seconds: float


class Workload:
    """What every precision computes. trained: how many responses, the first ones, a gradient is made of.

    Advantages are those of the reference precision, so that gradients differ by rounding alone.
    """

    def __init__(self, tokenizer: Any, groups: Sequence[RolloutGroup], trained: int, longest: int) -> None:
        self.groups = groups
        manager = RewardManager(RewardConfig(), tokenizer, max_prompt_length=longest, max_response_length=longest)
        self._spliced = [request for requests in manager.reference_requests(groups) for request in requests]
        pairs = [(group.prompt, response) for group in groups for response in group.responses]
        self._own = [ScoreRequest.of_response(prompt, response.token_ids) for prompt, response in pairs[:trained]]
        self._update: list[TrainSequence] = []
        """With log-probs and advantages of the reference precision, once that has been measured."""

    def measure(self, model: Path, precision: str, max_tokens: int) -> Measured:
        """Build the policy of this model and compute with it. The reference precision goes first."""
        start = time.perf_counter()
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
            gc.collect()  # the last policy, which its gradient hooks refer to
        actor = ActorConfig(max_tokens_per_micro_batch=max_tokens, clip_grad=0.0, **PRECISIONS[precision])
        policy = bench_policy.load(model, actor, trainable=True).policy
        # Before the scores: delayed scaling is calibrated by an update.
        mixed = _gradient(policy, self._update) if self._update else ()
        asked = [request for request in self._spliced if request is not None]
        scores = policy.score([*asked, *self._own])
        probabilities = self._probabilities(scores)
        own = [score.log_probs for score in scores[len(asked) :]]
        if not self._update:
            self._update = self._sequences(probabilities, own)
        rescored = [replace(s, old_log_probs=old) for s, old in zip(self._update, own, strict=True)]
        gradient = _gradient(policy, rescored)
        return Measured(probabilities, gradient, mixed or gradient, time.perf_counter() - start)

    def _probabilities(self, scores: Sequence[TokenScores]) -> DoubleArray:
        probabilities = np.full(len(self._spliced), np.nan)
        rows = [row for row, request in enumerate(self._spliced) if request is not None]
        for row, score in zip(rows, scores, strict=False):
            probabilities[row] = aggregate(score.log_probs, RewardConfig().compute_score_name)
        return probabilities

    def _sequences(self, probabilities: DoubleArray, log_probs: Sequence[FloatArray]) -> list[TrainSequence]:
        rewards = np.nan_to_num(probabilities)
        per_group, first = [], 0
        for group in self.groups:
            lengths = [len(response.token_ids) for response in group.responses]
            per_group.append(GroupRewards.at_the_end(rewards[first : first + len(lengths)], lengths))
            first += len(lengths)
        advantages = [
            of_response
            for group in estimate_advantages("grpo", per_group, EstimatorOptions())
            for of_response in group.tokens
        ]
        return [
            TrainSequence(request.token_ids, request.start, request.stop, old, of_response)
            for request, old, of_response in zip(self._own, log_probs, advantages, strict=False)
        ]


def _gradient(policy: MegatronPolicy, sequences: Sequence[TrainSequence]) -> Gradient:
    tokens = sum(s.stop - s.start for s in sequences)
    policy.update(sequences, [1 / tokens] * len(sequences), _TERMS, lr=0.0)
    return tuple(parameter.main_grad.detach().clone() for parameter in policy.chunks[0].parameters())
