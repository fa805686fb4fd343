"""A forest of prefixes in blocks of rows, for attention in plain tensor operations.

Tokens lie in depth-first order, so "a is an ancestor of j (or j itself)" is `a <= j < subtree_stop[a]`: the descendants
of a token are contiguous. The queries are cut into blocks of neighbouring rows. All ancestors that lie before a block
are ancestors of the block's first row (an ancestor of a later row, being before the block, has the first row inside
its contiguous subtree), so one gathered list of keys serves the whole block, and each row sees a prefix of that list
plus its ancestors inside the block. A sliding window of w tokens (a row at depth p sees depths p - w + 1 to p) takes
keys away at the front of the list: those no row sees are not gathered, the rest is masked. Memory is rows x block,
never rows x rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
import torch

from megatron_rlpr.actor.attention.query_rows import ranges
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

BLOCK_ROWS = 128


@dataclass(frozen=True)
class AttentionBlock:
    """Queries start..stop, of those that there are, and which of its run's keys they may see: first_key..stop_key.

    bias: [stop - start, tail], 0 or -inf, for the last `tail` of these keys. front_bias: [stop - start, front], the
    same for the first of them, with a sliding window. Every row sees all keys in between.
    """

    start: int
    stop: int
    first_key: int
    stop_key: int
    bias: torch.Tensor
    front_bias: torch.Tensor


@dataclass(frozen=True)
class AttentionRun:
    """Blocks that start in one node: each one's keys continue the last one's, so they are gathered once.

    keys: int64 [S], token indices: ancestors before the first block in depth order, then the rows of all blocks.
    """

    keys: torch.Tensor
    blocks: tuple[AttentionBlock, ...]


Runs = tuple[AttentionRun, ...]


def attention_runs(
    nodes: Nodes,
    dtype: torch.dtype,
    device: torch.device,
    window: int = 0,
    block_rows: int = BLOCK_ROWS,
    rows: IntArray | None = None,
) -> Runs:
    """Cut a forest into attention blocks.

    window: tokens a row sees, itself included; 0: all its ancestors. rows: the tokens that ask, in increasing order;
    None: all.
    """
    sizes = nodes.stop - nodes.start
    node_of, subtree_stop = np.repeat(np.arange(len(sizes)), sizes), np.repeat(nodes.subtree_stop, sizes)
    depth = np.concatenate([np.arange(len(p) - n, len(p)) for p, n in zip(nodes.paths, sizes, strict=True)])

    def block(keys: IntArray, run_stop: int, start: int, stop: int, query: int) -> AttentionBlock:
        rows = np.arange(start, stop)
        stop_key = len(keys) - (run_stop - stop)
        # Up to the block's own rows, keys lie in depth order: all its run's rows before it are ancestors of its first.
        first_key = min(max(0, int(depth[rows].min()) - window + 1), stop_key - len(rows)) if window else 0
        there = keys[first_key:stop_key]
        seen = (there[None, :] <= rows[:, None]) & (rows[:, None] < subtree_stop[there][None, :])
        if window:
            seen &= depth[there][None, :] > depth[rows][:, None] - window
        front, tail = _seen_by_all(seen)
        bias = np.where(seen, 0.0, -np.inf)
        on_device = [torch.from_numpy(b).to(device=device, dtype=dtype) for b in (bias[:, tail:], bias[:, :front])]
        return AttentionBlock(query, query + stop - start, first_key, stop_key, *on_device)

    runs, queries = [], 0
    for first, last in [(0, len(depth))] if rows is None else ranges(rows):
        bounds = pairwise(_block_bounds(nodes, first, last, block_rows))
        for node, group in groupby(bounds, key=lambda bound: node_of[bound[0]]):
            pieces = list(group)
            run_start, run_stop = pieces[0][0], pieces[-1][1]
            keys = np.append(nodes.paths[node][: depth[run_start]], np.arange(run_start, run_stop))
            blocks = tuple(block(keys, run_stop, *piece, queries + piece[0] - first) for piece in pieces)
            runs.append(AttentionRun(torch.from_numpy(keys).to(device), blocks))
        queries += last - first
    return tuple(runs)


def _seen_by_all(seen: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The longest run [start, stop) of keys that all rows see: seen [rows, keys]. Keys beside it need a bias."""
    edges = np.concatenate([[-1], np.flatnonzero(~seen.all(axis=0)), [seen.shape[1]]])
    longest = int(np.diff(edges).argmax())
    return int(edges[longest]) + 1, int(edges[longest + 1])


def _block_bounds(nodes: Nodes, first: int, last: int, block_rows: int) -> list[int]:
    """Where the blocks of tokens first to last (exclusive) start, and the end of the last block.

    A block that reaches from one long branch into the next would gather keys of the first that its later rows may not
    see, so a long node starts a block. Short nodes share one. What lies between is cut into equal parts.
    """
    long = (nodes.stop - nodes.start > block_rows // 2) & (nodes.start > first) & (nodes.start < last)
    run_starts = [first, *nodes.start[long].tolist(), last]
    bounds = [first]
    for start, stop in pairwise(run_starts):
        parts = -(-(stop - start) // block_rows)
        bounds += [start + (stop - start) * (i + 1) // parts for i in range(parts)]
    return bounds
