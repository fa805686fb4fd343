"""What the reasoning of responses is worth: its length, and what it adds to the reference answer's probability.

Reasoning gain = reference probability after a response's reasoning - that after no reasoning, both of one policy.
The response without reasoning is EMPTY: the tags stay and the splice, its white space and how probabilities become one
number are those of the reference probability. (The base probability has no tags and other white space, quirk Q16, so
the difference to it also holds what the tags do.) It depends on the prompt alone: one short sequence a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.grading.format import CLOSE_ANSWER, CLOSE_THINK, OPEN_ANSWER, OPEN_THINK
from megatron_rlpr.types import Response, ScoredGroup

EMPTY = {
    "R1": f"{OPEN_THINK} {CLOSE_THINK} {OPEN_ANSWER} {CLOSE_ANSWER}",
    "R1_nothink": f"{OPEN_ANSWER} {CLOSE_ANSWER}",
}
"""The response without reasoning, by reward.format_mode."""


def empty_response(tokenizer: Any, format_mode: str) -> Response:
    """A response that reasons nothing and leaves room for the reference answer."""
    (encoding,) = encode(tokenizer, [EMPTY[format_mode] + tokenizer.eos_token])
    return Response(tuple(encoding.ids), EMPTY[format_mode] + tokenizer.eos_token, (), "stop", 0)


def gain_metrics(groups: Sequence[ScoredGroup], without: Sequence[float | None]) -> dict[str, float]:
    """reasoning/gain and reasoning/probability_without, means over responses the reference answer was spliced into.

    without: the reference probability of every group's prompt with no reasoning; None where there is none. Empty
    where nothing can be said.
    """
    pairs = [
        (reward.reference_probability, other)
        for group, other in zip(groups, without, strict=True)
        if other is not None
        for reward in group.rewards
        if reward.splice_valid
    ]
    if not pairs:
        return {}
    return {
        "reasoning/gain": math.fsum(one - other for one, other in pairs) / len(pairs),
        "reasoning/probability_without": math.fsum(other for _, other in pairs) / len(pairs),
    }


def reasoning_metrics(
    groups: Sequence[ScoredGroup], reasoning_tokens: Sequence[int], right_tags: Sequence[bool]
) -> dict[str, float]:
    """reasoning/length and reasoning/share, means over the responses with right tags; empty without one.

    reasoning_tokens, right_tags: of every response, in order.
    """
    sizes = [len(response.token_ids) for group in groups for response in group.group.responses]
    rows = [
        (tokens, size)
        for tokens, size, right in zip(reasoning_tokens, sizes, right_tags, strict=True)
        if right and size
    ]
    if not rows:
        return {}
    return {
        "reasoning/length": sum(tokens for tokens, _ in rows) / len(rows),
        "reasoning/share": math.fsum(tokens / size for tokens, size in rows) / len(rows),
    }
