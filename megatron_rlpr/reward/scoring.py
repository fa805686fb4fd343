"""Rollout groups -> scored groups: one call of the policy for everything a batch of groups needs.

Old log-probs of the responses, reference probabilities of the spliced sequences and (when it follows the current
policy) the base probabilities go into a single `score`, so that they share their common prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.reward.base_probability import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.types import Prompt, RolloutGroup, ScoredGroup, ScoreRequest, TokensDone

BaseMode = Literal["initial", "current", "none"]


class GroupScorer:
    """Scores groups with the policy and turns the scores into rewards."""

    def __init__(self, policy: MegatronPolicy, rewards: RewardManager, base: BaseMode, clock: Clock) -> None:
        self._policy = policy
        self._rewards = rewards
        self._base = base
        self._clock = clock

    def score(
        self,
        groups: Sequence[RolloutGroup],
        table: BaseProbabilityTable | None = None,
        progress: TokensDone | None = None,
    ) -> list[ScoredGroup]:
        """Scored groups in the given order. Responses whose splice is invalid cost no reference forward.

        table: base probabilities by prompt, needed with base="initial".
        """
        with self._clock.phase("reward"):
            spliced = self._rewards.reference_requests_batch(groups)
            prompts = [group.prompt for group in groups]
            base_requests = self._rewards.base_requests(prompts) if self._base == "current" else []
        own = [
            ScoreRequest.of_response(group.prompt, response.token_ids)
            for group in groups
            for response in group.responses
        ]
        wanted = [request for requests in spliced for request in requests if request is not None]
        with self._clock.phase("score"):
            scores = self._policy.score([*own, *wanted, *base_requests], progress)
        own_scores, reference_scores = iter(scores[: len(own)]), iter(scores[len(own) : len(own) + len(wanted)])
        base_scores = iter(scores[len(own) + len(wanted) :])
        with self._clock.phase("reward"):
            scored = []
            for group, requests in zip(groups, spliced, strict=True):
                references = [None if request is None else next(reference_scores) for request in requests]
                base = (
                    self._rewards.base_probability(next(base_scores))
                    if base_requests
                    else self._stored_base(group.prompt, table)
                )
                token_scores = tuple(next(own_scores) for _ in group.responses)
                scored.append(ScoredGroup(group, token_scores, self._rewards.rewards(group, references, base)))
        return scored

    def complete(
        self, table: BaseProbabilityTable, prompts: Sequence[Prompt], progress: TokensDone | None = None
    ) -> int:
        """Add the current policy's base probability of every prompt the table lacks; returns how many were added."""
        missing = table.missing(prompts)
        scores = self._policy.score(self._rewards.base_requests(missing), progress)
        for prompt, answer in zip(missing, scores, strict=True):
            table.record(prompt, self._rewards.base_probability(answer))
        return len(missing)

    def _stored_base(self, prompt: Prompt, table: BaseProbabilityTable | None) -> float:
        if self._base == "none":
            return 0.0
        if table is None:
            raise ValueError("base probabilities of the initial policy are wanted but no table was given")
        return table.probability(prompt)
