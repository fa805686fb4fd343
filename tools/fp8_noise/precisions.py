"""The policy in one precision after the other: what it gives the reference answers, and what an update would change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state

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


@dataclass(frozen=True)
class Measured:
    """probabilities: of the reference answer by every response, nan where it could not be spliced in. gradient: fp32,
    one tensor per parameter. seconds: for both."""

    probabilities: DoubleArray
    gradient: tuple[torch.Tensor, ...]
    seconds: float


class Workload:
    """What every precision computes. trained: how many responses, the first ones, a gradient is made of.

    The update is the reference precision's: its log-probs and advantages, so that gradients differ by rounding alone.
    """

    def __init__(self, tokenizer: Any, groups: Sequence[RolloutGroup], trained: int, longest: int) -> None:
        self.groups = groups
        manager = RewardManager(RewardConfig(), tokenizer, max_prompt_length=longest, max_response_length=longest)
        self._spliced = [request for requests in manager.reference_requests(groups) for request in requests]
        pairs = [(group.prompt, response) for group in groups for response in group.responses]
        self._own = [ScoreRequest.of_response(prompt, response.token_ids) for prompt, response in pairs[:trained]]
        self._update: list[TrainSequence] | None = None

    def measure(self, model: Path, precision: str, max_tokens: int) -> Measured:
        """Build the policy of this model and compute with it. The reference precision goes first."""
        start = time.perf_counter()
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        actor = ActorConfig(max_tokens_per_micro_batch=max_tokens, clip_grad=0.0, **PRECISIONS[precision])
        policy = bench_policy.load(model, actor, trainable=True).policy
        asked = [request for request in self._spliced if request is not None]
        probabilities = np.full(len(self._spliced), np.nan)
        if self._update is None:
            scores = policy.score([*asked, *self._own])
            self._keep(probabilities, scores)
            self._update = self._sequences(probabilities, scores[len(asked) :])
        tokens = sum(s.stop - s.start for s in self._update)
        policy.update(self._update, [1 / tokens] * len(self._update), _TERMS, lr=0.0)  # it calibrates delayed scaling
        gradient = tuple(p.main_grad.detach().clone() for p in policy.chunks[0].parameters())
        if precision != REFERENCE:
            self._keep(probabilities, policy.score(asked))
        return Measured(probabilities, gradient, time.perf_counter() - start)

    def _keep(self, probabilities: DoubleArray, scores: Sequence[TokenScores]) -> None:
        rows = [row for row, request in enumerate(self._spliced) if request is not None]
        for row, score in zip(rows, scores, strict=False):
            probabilities[row] = aggregate(score.log_probs, RewardConfig().compute_score_name)

    def _sequences(self, probabilities: DoubleArray, own: Sequence[TokenScores]) -> list[TrainSequence]:
        rewards = np.nan_to_num(probabilities)
        per_group, first = [], 0
        for group in self.groups:
            lengths = [len(response.token_ids) for response in group.responses]
            per_group.append(GroupRewards.at_the_end(rewards[first : first + len(lengths)], lengths))
            first += len(lengths)
        advantages: list[FloatArray] = [
            tokens for group in estimate_advantages("grpo", per_group, EstimatorOptions()) for tokens in group.tokens
        ]
        return [
            TrainSequence(request.token_ids, request.start, request.stop, score.log_probs, of_tokens)
            for request, score, of_tokens in zip(self._own, own, advantages, strict=False)
        ]
