"""The sequences to pack, in an order that makes every shared prefix contiguous.

Sorted like words in a dictionary, all sequences that share a prefix are neighbours, and the lengths that neighbours
have in
common describe the whole prefix tree: any ordered subset shares, between two sequences, the smallest of the lengths
in between, and its tree has sum(length) - sum(shared) tokens.

Only what a wanted row depends on is computed: the last wanted token is a target, never an input, so the inputs of a
request are token_ids[: stop - 1], and a request that wants no row costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_rlpr.types import IntArray, ScoreRequest, int32_row


@dataclass(frozen=True)
class SortedSequences:
    """n requests that want at least one row, in packing order. All arrays are [n]; int64 unless said otherwise.

    tokens: int32 arrays, token_ids[:stop] of each sequence.
    request: index into the caller's list. start, stop: the wanted span.
    length: input tokens, stop - 1.
    shared: input tokens in common with the sequence before (0 for the first).
    shared_with_targets: the same over token_ids[:stop], which decides whether two wants are the same row.
    """

    tokens: tuple[npt.NDArray[np.int32], ...]
    request: IntArray
    start: IntArray
    stop: IntArray
    length: IntArray
    shared: IntArray
    shared_with_targets: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, index: IntArray) -> SortedSequences:
        """The sequences at `index` (ascending), with what each shares with its new predecessor."""
        return SortedSequences(
            tuple(self.tokens[i] for i in index),
            self.request[index],
            self.start[index],
            self.stop[index],
            self.length[index],
            shared_in_subset(self.shared, index),
            shared_in_subset(self.shared_with_targets, index),
        )


def shared_in_subset(shared: IntArray, index: IntArray) -> IntArray:
    """What each sequence of an ascending subset shares with the one before it in the subset: int64 [len(index)]."""
    between = np.zeros(len(index), dtype=np.int64)
    if len(index) > 1:
        between[1:] = np.minimum.reduceat(shared[: index[-1] + 1], index[:-1] + 1)
    return between


def sort_sequences(requests: Sequence[ScoreRequest], share_prefixes: bool) -> SortedSequences:
    """Order the requests for packing; without sharing they keep their order and have nothing in common.

    Raises ValueError for a span outside 0 < start <= stop <= len(token_ids).
    """
    wanted = []
    for i, request in enumerate(requests):
        if not 0 < request.start <= request.stop <= len(request.token_ids):
            span = f"span [{request.start}, {request.stop})"
            raise ValueError(
                f"request {i}: {span} must lie in 0 < start <= stop <= {len(request.token_ids)}, its token count"
            )
        if request.stop > request.start:
            wanted.append(i)
    tokens = [int32_row(requests[i].token_ids)[: requests[i].stop] for i in wanted]
    order = list(range(len(wanted)))
    shared_with_targets = np.zeros(len(wanted), dtype=np.int64)
    if share_prefixes:
        # Any order of the tokens brings equal prefixes together, so compare ids by their bytes: that is a memcmp.
        keys = [row.tobytes() for row in tokens]
        order.sort(key=keys.__getitem__)
        tokens = [tokens[i] for i in order]
        for i in range(1, len(tokens)):
            shared_with_targets[i] = common_prefix(tokens[i - 1], tokens[i])
    request_index = np.array([wanted[i] for i in order], dtype=np.int64)
    start = np.array([requests[i].start for i in request_index], dtype=np.int64)
    stop = np.array([requests[i].stop for i in request_index], dtype=np.int64)
    length = stop - 1
    shared = np.minimum(shared_with_targets, length)
    shared[1:] = np.minimum(shared[1:], length[:-1])
    return SortedSequences(tuple(tokens), request_index, start, stop, length, shared, shared_with_targets)


def common_prefix(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> int:
    """Number of leading tokens two sequences have in common."""
    size = min(len(left), len(right))
    different = left[:size] != right[:size]
    first = int(different.argmax()) if size else 0
    return first if size and different[first] else size
