"""Whose a rollout group is: the texts of its responses are with one rank, their numbers with all.

All ranks need tokens and log-probs, to plan the same micro-batches. What is made of texts (spliced, graded, measured,
stored) is made once, by the owner. A text is its tokens decoded, so whoever has the tokens could make it again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np

from megatron_rlpr.reward.answer_tags import extract_answer
from megatron_rlpr.rollout.requests import RolloutRequest
from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.types import Response, RolloutGroup, ScoredGroup

Decode = Callable[[Sequence[int]], str]
"""Token ids -> their text, special tokens kept."""
_REASONS = ("stop", "length")


class ResponseElsewhere(Response):
    """A response whose text is with another rank: to read it is a mistake. Its tokens and log-probs are arrays, int32
    and float32."""

    def __init__(
        self, token_ids: Array, engine_log_probs: Array, finish_reason: str, seed: int, weight_versions: tuple[int, ...]
    ) -> None:
        vars(self).update(
            token_ids=token_ids,
            engine_log_probs=engine_log_probs,
            finish_reason=finish_reason,
            seed=seed,
            weight_versions=weight_versions,
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} of this response is with the rank that owns its prompt")

    def here(self, decode: Decode) -> Response:
        """The same with its text, decoded again."""
        tokens, log_probs = cast("Array", self.token_ids).tolist(), cast("Array", self.engine_log_probs).tolist()
        reason, seed, versions = self.finish_reason, self.seed, self.weight_versions
        return Response(tuple(tokens), decode(tokens), tuple(log_probs), reason, seed, versions)


def with_texts(group: RolloutGroup, decode: Decode) -> RolloutGroup:
    """The group with the text of every response, whoever owns it."""
    responses = (r.here(decode) if isinstance(r, ResponseElsewhere) else r for r in group.responses)
    return RolloutGroup(group.prompt, tuple(responses), group.owner)


def whole(scored: ScoredGroup, decode: Decode) -> ScoredGroup:
    """The scored group with every text, whoever owns it, as a checkpoint keeps it."""
    group = with_texts(scored.group, decode)
    pairs = zip(scored.rewards, group.responses, strict=True)
    rewards = tuple(replace(reward, extracted_answer=extract_answer(response.text)) for reward, response in pairs)
    return replace(scored, group=group, rewards=rewards)


def share_groups(
    shares: Shares, asked: RolloutRequest, owners: Sequence[int], mine: Mapping[int, Response]
) -> list[RolloutGroup]:
    """Collective: one group a prompt, in order, from the owners' responses.

    owners: the rank that owns each prompt. mine: responses by request number (prompt times n, plus sample); of those
    that this rank owns, all.
    """

    def work() -> list[Array]:
        return _numbers([mine[number] for number in _requests_of(shares.rank, owners, asked.n)])

    if shares.alone:
        return asked.groups(mine[number] for number in range(len(owners) * asked.n))
    of_rank = [_responses(arrays) for arrays in shares.gather(work, "sharing the responses")]
    return [
        RolloutGroup(
            prompt,
            tuple(
                mine[number * asked.n + sample] if owner == shares.rank else response
                for sample, response in enumerate([next(of_rank[owner]) for _ in range(asked.n)])
            ),
            owner,
        )
        for number, (prompt, owner) in enumerate(zip(asked.prompts, owners, strict=True))
    ]


def spread_groups(
    shares: Shares, asked: RolloutRequest, responses: Sequence[Response] | None, decode: Decode
) -> list[RolloutGroup]:
    """Collective: the same from responses that the first rank has; prompts are the ranks' in turn."""
    if shares.alone:
        return asked.groups(responses or ())
    each = _responses(shares.from_first(None if responses is None else _numbers(responses)))
    groups = []
    for number, prompt in enumerate(asked.prompts):
        group = RolloutGroup(prompt, tuple(next(each) for _ in range(asked.n)), number % shares.size)
        groups.append(with_texts(group, decode) if group.owner == shares.rank else group)
    return groups


def _requests_of(rank: int, owners: Sequence[int], n: int) -> Iterator[int]:
    """The numbers of the requests whose prompts a rank owns."""
    return chain.from_iterable(range(p * n, (p + 1) * n) for p, owner in enumerate(owners) if owner == rank)


def _numbers(responses: Sequence[Response]) -> list[Array]:
    """All of the responses but their texts: five numbers each, then tokens, log-probs and weight versions of all."""
    heads, tokens, log_probs, versions = array("i"), array("i"), array("f"), array("i")
    for r in responses:
        sizes = (len(r.token_ids), len(r.engine_log_probs), len(r.weight_versions))
        heads.extend((*sizes, _REASONS.index(r.finish_reason), r.seed))
        tokens.extend(r.token_ids)
        log_probs.extend(r.engine_log_probs)
        versions.extend(r.weight_versions)
    ints = [np.array(values, dtype=np.int32) for values in (heads, tokens, versions)]
    return [*ints, np.array(log_probs, dtype=np.float32)]


def _responses(arrays: Sequence[Array]) -> Iterator[Response]:
    """What `_numbers` was made of, but for the texts."""
    heads, tokens, versions, log_probs = arrays
    token = log_prob = version = 0
    for size, probabilities, count, reason, seed in heads.reshape(-1, 5).tolist():
        yield ResponseElsewhere(
            tokens[token : token + size],
            log_probs[log_prob : log_prob + probabilities],
            _REASONS[reason],
            seed,
            tuple(versions[version : version + count].tolist()),
        )
        token, log_prob, version = token + size, log_prob + probabilities, version + count
