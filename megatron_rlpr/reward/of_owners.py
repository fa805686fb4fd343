"""What owners make of texts, on all ranks: what is to be scored, and what scores are worth.

A request of an owner mostly repeats tokens that all ranks know (those of the response that it was made from), so only
what follows them is exchanged.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import chain

import numpy as np
import numpy.typing as npt

from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.types import Prompt, ResponseReward, RolloutGroup, ScoreRequest, TokenIds, int32_row

Requests = list[ScoreRequest | None]
_INVALID = -1
_NUMBERS = tuple(field.name for field in fields(ResponseReward) if field.name != "extracted_answer")


def requests_of_owners(
    shares: Shares,
    groups: Sequence[RolloutGroup],
    known: Sequence[Sequence[TokenIds]],
    make: Callable[[list[RolloutGroup]], Requests],
) -> Requests:
    """Collective: what the owners make of their groups, in the order of the groups; None where there is nothing.

    make: the requests of some groups. known: for every request of each group, tokens that all ranks have and the
    request may begin with.
    """
    if shares.alone:
        return make(list(groups))

    def work() -> list[Array]:
        owned = [pair for pair in zip(groups, known, strict=True) if pair[0].owner == shares.rank]
        return _packed(make([group for group, _ in owned]), [row for _, rows in owned for row in rows])

    made = [_Unpacked(arrays) for arrays in shares.gather(work, "making the sequences to score")]
    return [made[group.owner].next(row) for group, rows in zip(groups, known, strict=True) for row in rows]


def requests_of_prompts(
    shares: Shares, groups: Sequence[RolloutGroup], make: Callable[[list[Prompt]], Sequence[ScoreRequest | None]]
) -> Requests:
    """Collective: one request of every group's prompt, which the group's owner makes of it; responses do not matter."""
    known = [[group.prompt.token_ids] for group in groups]
    return requests_of_owners(shares, groups, known, lambda mine: [*make([group.prompt for group in mine])])


def rewards_of_owners(
    shares: Shares,
    groups: Sequence[RolloutGroup],
    make: Callable[[list[int]], list[tuple[ResponseReward, ...]]],
) -> list[tuple[ResponseReward, ...]]:
    """Collective: the rewards that owners give, of all groups. extracted_answer is theirs alone, "" elsewhere.

    make: the rewards of the groups at some indices.
    """
    if shares.alone:
        return make(list(range(len(groups))))
    mine: dict[int, tuple[ResponseReward, ...]] = {}

    def work() -> list[Array]:
        owned = [index for index, group in enumerate(groups) if group.owner == shares.rank]
        mine.clear()
        mine.update(zip(owned, make(owned), strict=True))
        flat = [getattr(reward, name) for reward in chain.from_iterable(mine.values()) for name in _NUMBERS]
        return [np.array(flat, dtype=np.float64)]

    made = [
        iter(numbers.reshape(-1, len(_NUMBERS)).tolist()) for (numbers,) in shares.gather(work, "giving the rewards")
    ]
    rewards = [tuple(_reward(next(made[group.owner])) for _ in group.responses) for group in groups]
    return [mine.get(index, others) for index, others in enumerate(rewards)]


def _reward(numbers: Sequence[float]) -> ResponseReward:
    named = dict(zip(_NUMBERS, numbers, strict=True))
    return ResponseReward(**{**named, "splice_valid": bool(named["splice_valid"]), "extracted_answer": ""})  # type: ignore[arg-type]


def _packed(requests: Requests, known: Sequence[TokenIds]) -> list[Array]:
    """Four numbers a request (known tokens it begins with or _INVALID, tokens that follow, span), then what follows."""
    heads, following = array("i"), []
    for request, row in zip(requests, known, strict=True):
        if request is None:
            heads.extend((_INVALID, 0, 0, 0))
            continue
        tokens = int32_row(request.token_ids)
        begins = common_length(tokens, int32_row(row))
        heads.extend((begins, len(tokens) - begins, request.start, request.stop))
        following.append(tokens[begins:])
    return [np.array(heads, dtype=np.int32), np.concatenate([np.zeros(0, np.int32), *following])]


class _Unpacked:
    """Gives the requests of one owner, one after the other."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        heads, self._following = arrays
        self._heads = iter(heads.reshape(-1, 4).tolist())
        self._at = 0

    def next(self, known: TokenIds) -> ScoreRequest | None:
        begins, follows, start, stop = next(self._heads)
        if begins == _INVALID:
            return None
        after = self._following[self._at : self._at + follows]
        self._at += follows
        return ScoreRequest(np.concatenate((int32_row(known)[:begins], after)), start, stop)


def common_length(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> int:
    """Number of leading tokens two sequences have in common."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size
