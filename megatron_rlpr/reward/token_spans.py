"""Characters -> tokens: which tokens of an encoded text touch a range of its characters."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any


def overlapping_tokens(encoding: Any, start: int, stop: int) -> tuple[int, int]:
    """[first, last) of the tokens that share at least one character with text[start:stop]; first == last: none.

    encoding is one tokenizers.Encoding. A token that merges characters on both sides of an edge counts wholly. Token
    offsets never decrease, so both edges are found by bisection without turning the whole encoding into Python objects.
    """

    def offsets(token: int) -> tuple[int, int]:
        found = encoding.token_to_chars(token)
        return found if found is not None else (-1, -1)

    tokens = range(len(encoding))
    first = bisect_left(tokens, True, key=lambda token: offsets(token)[1] > start)
    last = bisect_left(tokens, True, key=lambda token: offsets(token)[0] >= stop)
    return first, max(first, last)
