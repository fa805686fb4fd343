"""Which engine gets the next prompt: the one with the fewest tokens still to write, if it has room.

Whole prompts are given out, so that the n responses of a prompt share its key/value blocks, and only as many as an
engine decodes at once; the rest waits for whichever engine is done first, however long the responses turn out to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What an engine has in flight: its requests, and the tokens these may still take."""

    requests: int
    tokens: int


def outstanding_tokens(prompt_and_limit: Iterable[tuple[int, int]], written: int) -> int:
    """Tokens that requests of (prompt tokens, most new tokens) may still take, `written` of which exist already."""
    return max(sum(prompt + limit for prompt, limit in prompt_and_limit) - written, 0)


def least_loaded(loads: Mapping[int, Load], room: int) -> int | None:
    """The engine with the fewest outstanding tokens of those with less than `room` requests, the first on a tie."""
    free = [(load.tokens, number) for number, load in loads.items() if load.requests < room]
    return min(free)[1] if free else None
