"""The shape of a forest of prefixes, as the attention needs it.

Tokens lie in depth-first order, so "a is an ancestor of j (or j itself)" is `a <= j < subtree_stop[a]`: the descendants
of a token are contiguous. The queries are cut into blocks of neighbouring rows. All ancestors that lie before a block
are ancestors of the block's first row (an ancestor of a later row, being before the block, has the first row inside
its contiguous subtree), so one gathered list of keys serves the whole block, and each row sees a prefix of that list
plus its ancestors inside the block. Memory is rows x block, never rows x rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from megatron.core.packed_seq_params import PackedSeqParams

BLOCK_ROWS = 128
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AttentionBlock:
    """Queries start..stop and the keys they may see.

    keys: int64 [S], token indices: ancestors before the block in depth order, then start..stop.
    bias: [stop - start, tail], 0 or -inf, for the last `tail` keys; every row sees all keys before those.
    """

    start: int
    stop: int
    keys: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class TreeLayout:
    """Everything the layers need to know about one micro-batch's forest: attention blocks and rotary tables.

    cos, sin: [T, 1, 1, rotary_dim] in the compute dtype.
    """

    blocks: tuple[AttentionBlock, ...]
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class HeadRows:
    """What the last stage computes: the log-prob of `targets` from the hidden state at `source_rows`.

    source_rows, targets: int64 [R]; temperature: divides the logits; chunk_rows: rows with logits at one time.
    """

    source_rows: torch.Tensor
    targets: torch.Tensor
    temperature: float
    chunk_rows: int


class TreeSeqParams(PackedSeqParams):
    """Carries a TreeLayout and the wanted HeadRows through Megatron's layers (recompute and pipeline schedules included).

    Its format stays 'sbhd': Megatron then leaves queries, keys and values as [T, 1, heads, dim].
    """

    def __init__(self, layout: TreeLayout, head: HeadRows | None = None) -> None:
        super().__init__(qkv_format="sbhd")
        self.layout = layout
        self.head = head


def attention_blocks(
    node_start: IntArray,
    node_stop: IntArray,
    node_parent: IntArray,
    node_subtree_stop: IntArray,
    dtype: torch.dtype,
    device: torch.device,
    block_rows: int = BLOCK_ROWS,
) -> tuple[AttentionBlock, ...]:
    """Cut a forest in depth-first order into attention blocks.

    The four arrays describe the nodes: token range, parent (-1: root) and the end of the subtree's token range.
    """
    num_tokens = int(node_stop[-1]) if len(node_stop) else 0
    subtree_stop = np.empty(num_tokens, dtype=np.int64)
    node_of = np.empty(num_tokens, dtype=np.int64)
    for node, (start, stop) in enumerate(zip(node_start, node_stop, strict=True)):
        subtree_stop[start:stop] = node_subtree_stop[node]
        node_of[start:stop] = node
    blocks = []
    for start, stop in pairwise(_block_bounds(node_start, num_tokens, block_rows)):
        keys = np.concatenate([_path_before(start, node_of, node_start, node_stop, node_parent), np.arange(start, stop)])
        rows = np.arange(start, stop)
        seen = (keys[None, :] <= rows[:, None]) & (rows[:, None] < subtree_stop[keys][None, :])
        unseen_somewhere = np.flatnonzero(~seen.all(axis=0))
        first = int(unseen_somewhere[0]) if len(unseen_somewhere) else len(keys)
        bias = np.where(seen[:, first:], 0.0, -np.inf)
        blocks.append(
            AttentionBlock(
                start,
                stop,
                torch.from_numpy(keys).to(device),
                torch.from_numpy(bias).to(device=device, dtype=dtype),
            )
        )
    return tuple(blocks)


def _block_bounds(node_start: IntArray, num_tokens: int, block_rows: int) -> list[int]:
    """Where blocks start, and the end of the last.

    A block that reaches from one long branch into the next would gather keys of the first that its later rows may not
    see, so a long node starts a block. Short nodes share one. What lies between is cut into equal parts.
    """
    long = np.diff(np.append(node_start, num_tokens)) > block_rows // 2
    run_starts = sorted({0, *node_start[long].tolist(), num_tokens})
    bounds = [0]
    for start, stop in pairwise(run_starts):
        parts = -(-(stop - start) // block_rows)
        bounds += [start + (stop - start) * (i + 1) // parts for i in range(parts)]
    return bounds


def _path_before(start: int, node_of: IntArray, node_start: IntArray, node_stop: IntArray, node_parent: IntArray) -> IntArray:
    """Token indices of the ancestors of row `start` that lie before it, in depth order."""
    node = int(node_of[start])
    pieces = [np.arange(node_start[node], start)]
    while (node := int(node_parent[node])) >= 0:
        pieces.append(np.arange(node_start[node], node_stop[node]))
    return np.concatenate(pieces[::-1])
