"""Rollout groups -> scored groups: one call of the policy for everything a group needs.

Old log-probs of the responses, reference probabilities of the spliced sequences and (when it follows the current
policy) the base probability go into a single `score`, so that they share their common prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.schedule import Progress
from megatron_rlpr.reward.base_probability import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.types import Prompt, RolloutGroup, ScoredGroup, ScoreRequest


def response_request(prompt: Prompt, token_ids: Sequence[int]) -> ScoreRequest:
    """The request for the log-probs of a whole response."""
    start = len(prompt.token_ids)
    return ScoreRequest((*prompt.token_ids, *token_ids), start, start + len(token_ids))


class GroupScorer:
    """Scores groups with the policy and turns the scores into rewards."""

    def __init__(self, policy: MegatronPolicy, rewards: RewardManager, base_probability: str, table: BaseProbabilityTable | None) -> None:
        self._policy = policy
        self._rewards = rewards
        self._base_probability = base_probability
        self._table = table

    def score(self, groups: Sequence[RolloutGroup], progress: Progress | None = None) -> list[ScoredGroup]:
        """Scored groups in the given order. Responses whose splice is invalid cost no reference forward."""
        requests: list[ScoreRequest] = []

        def ask(request: ScoreRequest | None) -> int | None:
            if request is None:
                return None
            requests.append(request)
            return len(requests) - 1

        own, reference, base = [], [], []
        for group, spliced in zip(groups, self._rewards.reference_requests_batch(groups), strict=True):
            own.append([ask(response_request(group.prompt, r.token_ids)) for r in group.responses])
            reference.append([ask(request) for request in spliced])
            base.append(ask(self._rewards.base_request(group.prompt)) if self._asks_policy_for_base(group.prompt) else None)
        scores = self._policy.score(requests, progress)

        def answer(index: int | None) -> TokenScores | None:
            return None if index is None else scores[index]
        scored = []
        for group, mine, spliced_at, base_at in zip(groups, own, reference, base, strict=True):
            base_probability = self._base(group.prompt, base_at, scores)
            rewards = self._rewards.rewards(group, [answer(i) for i in spliced_at], base_probability)
            scored.append(ScoredGroup(group, tuple(scores[i] for i in mine if i is not None), rewards))
        return scored
