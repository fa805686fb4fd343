"""A forest of prefixes as a cascade of calls of variable-length attention, with no key given twice to one call.

Tokens lie in depth-first order, so a node's own tokens are contiguous, and so are all its descendants' tokens behind
them. One causal call lets every node attend to itself. Then one call for every level of the tree, without a mask: the
nodes of that level that have descendants give their keys, and each one's descendants ask. Every token meets each of
its ancestors in exactly one call, and merging the calls' outputs by their log-sum-exps gives attention to the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

_SHORTEST_CALL = 2
"""Told that no segment has more than one query, PyTorch's kernel takes every segment to have exactly one."""


_SPARSE = 2
"""Queries are copied together when they make up less than one in so many of the rows that they lie in."""


@dataclass(frozen=True)
class CascadeCall:
    """One call: N segments, each a range of queries that see a range of keys.

    rows, keys: the queries and the keys, contiguous or int64. query_bounds, key_bounds: int32 [N + 1], where the
    segments begin in them. longest_query, longest_keys: of any segment. causal: mask what comes later in a segment.
    idle: bool [rows], which queries lie between two segments' (in segments without keys); None if none do.
    """

    rows: slice | Tensor
    keys: slice | Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_keys: int
    causal: bool
    idle: Tensor | None


Cascade = tuple[CascadeCall, ...]


def cascade(nodes: Nodes, device: torch.device) -> Cascade:
    """Every node on itself, then the levels from the roots down."""
    on_itself = _call(nodes.start, nodes.stop, nodes.start, nodes.stop, device, causal=True)
    has_descendants = nodes.subtree_stop > nodes.stop
    levels = np.zeros(len(nodes.start), dtype=np.int64)
    for node, parent in enumerate(nodes.parent):
        levels[node] = levels[parent] + 1 if parent >= 0 else 0
    of_levels = []
    for level in range(int(levels.max()) + 1):
        chosen = (levels == level) & has_descendants
        if chosen.any():
            start, stop, subtree_stop = (x[chosen] for x in (nodes.start, nodes.stop, nodes.subtree_stop))
            of_levels.append(_call(stop, subtree_stop, start, stop, device, causal=False))
    return on_itself, *of_levels


def _call(
    first_query: IntArray,
    last_query: IntArray,
    first_key: IntArray,
    last_key: IntArray,
    device: torch.device,
    causal: bool,
) -> CascadeCall:
    """Of disjoint ranges in increasing order."""
    queries, keys = last_query - first_query, last_key - first_key
    span = slice(int(first_query[0]), int(last_query[-1]))
    sparse = _SPARSE * queries.sum() < span.stop - span.start
    if not sparse:
        # The rows in between are segments without keys, so that no query is copied. The kernels answer 0 there.
        gaps = np.append(first_query[1:] - last_query[:-1], 0)
        queries, keys = (np.stack(pair, axis=1).ravel() for pair in ((queries, gaps), (keys, np.zeros_like(keys))))
        queries, keys = queries[queries > 0], keys[queries > 0]
    idle = np.repeat(keys == 0, queries)

    def on_device(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(array).to(device=device, dtype=dtype)

    def joined(first: IntArray, last: IntArray) -> slice | Tensor:
        if (first[1:] == last[:-1]).all():
            return slice(int(first[0]), int(last[-1]))
        return on_device(np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)]), torch.int64)

    return CascadeCall(
        rows=joined(first_query, last_query) if sparse else span,
        keys=joined(first_key, last_key),
        query_bounds=on_device(np.cumsum(np.append(0, queries)), torch.int32),
        key_bounds=on_device(np.cumsum(np.append(0, keys)), torch.int32),
        longest_query=max(_SHORTEST_CALL, int(queries.max())),
        longest_keys=int(keys.max()),
        causal=causal,
        idle=on_device(idle, torch.bool) if idle.any() else None,
    )
