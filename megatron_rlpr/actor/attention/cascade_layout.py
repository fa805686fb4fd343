"""A forest of prefixes as a cascade of calls of variable-length attention, with no long node given twice to one call.

Tokens lie in depth-first order, so a node's own tokens are contiguous, and so are all its descendants' tokens behind
them. One causal call lets every node attend to itself. Then one call for every level of the tree, without a mask: the
long nodes of that level that have descendants give their keys, and each one's descendants ask. A pass over all of
these for a few keys would cost more than it saves, so the keys of short nodes are repeated: in the first call, each
descendant's own keys stand behind them. Every token meets each of its ancestors in exactly one call, and merging the
calls' outputs by their log-sum-exps gives attention to the path.

Where not all tokens ask, the first call has a segment for every piece of a node that does, whose keys begin with the
node and end with the piece; in the others, fewer descendants ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megatron_rlpr.actor.attention.query_rows import pieces
from megatron_rlpr.actor.to_device import to_device
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

SHORTEST_LEVEL = 128
"""Tokens of a node that has a call for its descendants: a tile of the kernels, or two."""

_SHORTEST_CALL = 2
"""Told that no segment has more than one query, PyTorch's kernel takes every segment to have exactly one."""


_SPARSE = 2
"""Queries are copied together when they make up less than one in so many of the rows that they lie in."""


@dataclass(frozen=True)
class CascadeCall:
    """One call: N segments, each a range of queries that see a range of keys.

    rows, keys: the queries (counted among those that there are) and the keys, contiguous or int64. query_bounds,
    key_bounds: int32 [N + 1], where the segments begin in them. longest_query, longest_keys: of any segment. causal:
    mask what comes later in a segment, whose last query sees all of its keys. idle: bool [rows], which queries lie
    between two segments' (in segments without keys); None if none do.
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


def cascade(
    nodes: Nodes, device: torch.device, shortest_level: int = SHORTEST_LEVEL, rows: IntArray | None = None
) -> Cascade:
    """Every node on itself and its short ancestors, then the levels of long nodes from the roots down.

    rows: the tokens that ask, in increasing order; None: all.
    """
    asking = np.arange(nodes.stop[-1]) if rows is None else rows
    first_below, last_below = (np.searchsorted(asking, token) for token in (nodes.stop, nodes.subtree_stop))
    sizes = nodes.stop - nodes.start
    long = sizes >= shortest_level
    levels = np.zeros_like(sizes)  # how many long ancestors a node has
    none = np.zeros(0, dtype=np.int64)
    above: list[IntArray] = []  # tokens of its short ancestors
    for parent in nodes.parent:
        levels[len(above)] = levels[parent] + long[parent] if parent >= 0 else 0
        own = np.arange(nodes.start[parent], nodes.stop[parent]) if parent >= 0 and not long[parent] else none
        above.append(np.concatenate([above[parent], own]) if parent >= 0 else none)
    of_levels = []
    for level in range(int(levels.max()) + 1):
        chosen = (levels == level) & long & (last_below > first_below)
        if chosen.any():
            first_key, last_key = nodes.start[chosen], nodes.stop[chosen]
            queries = first_below[chosen], last_below[chosen]
            of_levels.append(_call(*queries, first_key, last_key, device, causal=False))
    return _on_themselves(nodes, rows, above, device), *of_levels


def _on_themselves(nodes: Nodes, rows: IntArray | None, above: list[IntArray], device: torch.device) -> CascadeCall:
    """above: of every node, the keys before its own. The call's keys are all tokens once, or copies of some."""
    node, start, stop = pieces(nodes, rows)
    query_stop = np.cumsum(stop - start)
    call = _call(query_stop - (stop - start), query_stop, nodes.start[node], stop, device, causal=True)
    if rows is None and not any(len(keys) for keys in above):
        return call
    own = [np.arange(*ends) for ends in zip(nodes.start[node], stop, strict=True)]
    keys = [np.concatenate([above[of], mine]) for of, mine in zip(node, own, strict=True)]
    lengths = [len(of_node) for of_node in keys]
    return replace(
        call,
        keys=to_device(np.concatenate(keys), device),
        key_bounds=to_device(np.cumsum([0, *lengths]), device, torch.int32),
        longest_keys=max(lengths),
    )


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

    def joined(first: IntArray, last: IntArray) -> slice | Tensor:
        if (first[1:] == last[:-1]).all():
            return slice(int(first[0]), int(last[-1]))
        return to_device(
            np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)]), device, torch.int64
        )

    return CascadeCall(
        rows=joined(first_query, last_query) if sparse else span,
        keys=joined(first_key, last_key),
        query_bounds=to_device(np.cumsum(np.append(0, queries)), device, torch.int32),
        key_bounds=to_device(np.cumsum(np.append(0, keys)), device, torch.int32),
        longest_query=max(_SHORTEST_CALL, int(queries.max())),
        longest_keys=int(keys.max()),
        causal=causal,
        idle=to_device(idle, device, torch.bool) if idle.any() else None,
    )
