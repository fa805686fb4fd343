"""Rollout groups -> scored groups: one call of the policy for everything a batch of groups needs.

Old log-probs of the responses, reference probabilities of the spliced sequences and (when it follows the current
policy) the base probabilities go into a single `score`, so that they share their common prefixes. What is made of texts
is made by each group's owner, and all ranks get it (`of_owners`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, Protocol, TypeVar

import numpy as np

from megatron_rlpr.reward import base_pass
from megatron_rlpr.reward.base_table import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.of_owners import Requests, requests_of_owners, requests_of_prompts, rewards_of_owners
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.types import (
    Prompt,
    ReferenceScores,
    ResponseReward,
    RolloutGroup,
    ScoredGroup,
    ScoreRequest,
    TokenScores,
    TokensDone,
    UserError,
    int32_row,
)

Item = TypeVar("Item")
BaseMode = Literal["initial", "current", "none"]

_NO_NUMBERS = (
    "log-probs or reward are NaN or infinite: the model is broken, or its numbers overflow. The run stops before it "
    "trains on them; its checkpoints are as they were. Set actor.dtype=float32, or start again with a lower actor.lr"
)


class Policy(Protocol):
    """What scoring asks of a policy."""

    def score(self, requests: Sequence[ScoreRequest], progress: TokensDone | None = None) -> list[TokenScores]:
        """Log-probs and entropies of the wanted tokens of every request, in request order, on every rank."""


class GroupScorer:
    """Scores groups with the policy and turns the scores into rewards. All ranks call it together.

    tables: of every prompt set by name, the initial policy's base probabilities (base="initial").
    """

    def __init__(
        self,
        policy: Policy,
        rewards: RewardManager,
        base: BaseMode,
        tables: Mapping[str, BaseProbabilityTable],
        clock: Clock,
        shares: Shares = Shares(),  # noqa: B008 - of this process alone
    ) -> None:
        self._policy = policy
        self._rewards = rewards
        self._base = base
        self._tables = tables
        self._clock = clock
        self._shares = shares

    def complete(self, prompt_set: str, prompts: Sequence[Prompt], part: base_pass.Part | None = None) -> int:
        """Add the policy's base probabilities to those its table lacks and store them; returns how many were added.

        Call before the policy changes. With another base than "initial" there is nothing to do. part: as `base_pass`.
        """
        if self._base != "initial":
            return 0
        table, score, rewards = self._tables[prompt_set], self._policy.score, self._rewards
        return base_pass.complete(table, prompt_set, prompts, score, rewards, _NO_NUMBERS, self._shares, part)

    def score(
        self, groups: Sequence[RolloutGroup], prompt_set: str, progress: TokensDone | None = None
    ) -> list[ScoredGroup]:
        """Scored groups in the given order. Responses whose splice is invalid cost no reference forward.

        Raises UserError when a log-prob, an entropy or a reward is no number.

        prompt_set: name of the set the groups' prompts are from.
        """
        with self._clock.phase("reward"):
            sizes = [len(group.responses) for group in groups]
            own = [ScoreRequest.of_response(g.prompt, response.token_ids) for g in groups for response in g.responses]
            spliced = _by_group(self._spliced(groups, own), sizes)
            base_requests = (
                requests_of_prompts(self._shares, groups, self._rewards.base_requests)
                if self._base == "current"
                else []
            )
        asked = [*own, *(request for requests in spliced for request in requests), *base_requests]
        with self._clock.phase("score"):
            scores = iter(self._policy.score([request for request in asked if request is not None], progress))
        own_scores = [tuple(next(scores) for _ in group.responses) for group in groups]
        references = [[None if request is None else next(scores) for request in requests] for requests in spliced]
        with self._clock.phase("reward"):
            if base_requests:
                base = [self._rewards.base_probability(answer) for answer in scores]
            else:
                base = [self._stored_base(group.prompt, prompt_set) for group in groups]

            def rewards_of(indices: list[int]) -> list[tuple[ResponseReward, ...]]:
                picked = ([of[index] for index in indices] for of in (groups, references, base))
                return self._rewards.rewards(*picked)  # type: ignore[arg-type]

            rewards = rewards_of_owners(self._shares, groups, rewards_of)
        kept = [tuple(map(_reference_scores, *pairs)) for pairs in zip(spliced, references, strict=True)]
        scored = [ScoredGroup(*parts) for parts in zip(groups, own_scores, rewards, kept, strict=True)]
        for group in scored:
            numbers = chain.from_iterable((scores.log_probs, scores.entropies) for scores in group.scores)
            if not (np.isfinite(group.final_rewards).all() and all(np.isfinite(values).all() for values in numbers)):
                raise UserError(f"prompt {group.group.prompt.index} of {prompt_set}: a response's {_NO_NUMBERS}")
        return scored

    def without_reasoning(
        self, groups: Sequence[RolloutGroup], progress: TokensDone | None = None
    ) -> list[float | None]:
        """The policy's reference probability of every group's prompt when nothing is reasoned; None where there is
        none.

        A call of its own: in that of `score` its sequences would share the prompts, but they would also change which
        sequences are computed together, and with it the last digits of what the policy is trained on.
        """
        requests = requests_of_prompts(self._shares, groups, self._rewards.requests_without_reasoning)
        with self._clock.phase("score"):
            scores = iter(self._policy.score([request for request in requests if request is not None], progress))
        return [None if request is None else self._rewards.reference_probability(next(scores)) for request in requests]

    def _spliced(self, groups: Sequence[RolloutGroup], own: Sequence[ScoreRequest]) -> Requests:
        """What to score for the reference probability of every response; None where nothing can be spliced in."""
        known = _by_group([request.token_ids for request in own], [len(group.responses) for group in groups])
        return requests_of_owners(
            self._shares, groups, known, lambda mine: list(chain.from_iterable(self._rewards.reference_requests(mine)))
        )

    def _stored_base(self, prompt: Prompt, prompt_set: str) -> float:
        return self._tables[prompt_set].probability(prompt) if self._base == "initial" else 0.0


def _by_group(each: Sequence[Item], sizes: Sequence[int]) -> list[list[Item]]:
    """What there is of every response, as a list a group."""
    rest = iter(each)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _reference_scores(request: ScoreRequest | None, answer: TokenScores | None) -> ReferenceScores | None:
    if request is None or answer is None:
        return None
    tokens = int32_row(request.token_ids)[request.start : request.stop]
    return ReferenceScores(tuple(tokens.tolist()), answer.log_probs)
