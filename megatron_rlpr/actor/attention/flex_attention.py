"""Tree attention through PyTorch's FlexAttention (CUDA): fp32, soft-capping and sliding windows as well.

A token's bounds say who sees it (`seen`), and whole blocks of queries and keys are judged by the bounds' extremes: no
pair is visible, all are ("full"), or some may be. Only in blocks of the last kind does the kernel ask for every pair.
That takes (tokens / BLOCK)**2 numbers, never tokens**2.

The kernel is compiled at its first use, once with and once without gradients, for any number of tokens; these are
padded to whole blocks. Its backward adds without atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from megatron_rlpr.actor.to_device import to_device
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

BLOCK = 128
_FEWEST_BLOCKS = 2
"""A single one would be compiled for by itself."""
_VARIANTS = 64
_SMALLEST_HEAD, _LARGEST_HEAD = 16, 256
COMPILATION = {"fullgraph": True, "dynamic": True}
"""Of the kernel: an error where PyTorch would go on without compiling, and build all scores; any number of tokens."""


@dataclass(frozen=True)
class FlexBlocks:
    """mask: over the tokens and `padding` more, each of which sees itself alone.

    query_padding: of the queries; where not all tokens ask, the last one asks again.
    """

    mask: BlockMask
    padding: int
    query_padding: int


class FlexBackend:
    """Slower than the cascade; it applies to what that one does not know."""

    name = "PyTorch's FlexAttention"

    def applies(
        self, dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device
    ) -> bool:
        return device.type == "cuda" and _SMALLEST_HEAD <= head_dim <= _LARGEST_HEAD

    def missing(self) -> str:
        return "" if find_spec("triton") else "triton, which compiles it, is not installed"

    def lay_out(
        self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int = 0, rows: IntArray | None = None
    ) -> FlexBlocks:
        sizes = nodes.stop - nodes.start
        tokens = int(sizes.sum())
        padding = _padding(tokens)
        before = np.zeros_like(sizes)  # how many ancestors a node's first token has
        for node, parent in enumerate(nodes.parent):
            before[node] = before[parent] + sizes[parent] if parent >= 0 else 0
        depth = np.arange(tokens) - np.repeat(nodes.start - before, sizes)
        depth = np.append(depth, np.zeros(padding, dtype=np.int64))
        subtree_stop = np.append(np.repeat(nodes.subtree_stop, sizes), np.arange(tokens, tokens + padding) + 1)
        if rows is None:
            query_padding, asking = padding, np.arange(tokens + padding)
        else:
            query_padding = _padding(len(rows))
            asking = np.append(rows, np.full(query_padding, rows[-1]))
        return FlexBlocks(visible_blocks(depth, subtree_stop, window, device, asking), padding, query_padding)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: FlexBlocks, scale: float, softcap: float | None
    ) -> Tensor:
        padded = ((q, layout.query_padding), (k, layout.padding), (v, layout.padding))
        by_head = (pad(x, (0, 0, 0, 0, 0, more)).transpose(0, 1)[None] for x, more in padded)
        score_mod = None if softcap is None else _capped(softcap, q.device)
        out = _kernel(q.device.type)(*by_head, score_mod, layout.mask, scale, enable_gqa=True)
        return out[0].transpose(0, 1)[: len(q)]


def _padding(tokens: int) -> int:
    return max(-tokens % BLOCK, _FEWEST_BLOCKS * BLOCK - tokens)


def visible_blocks(
    depth: IntArray, subtree_stop: IntArray, window: int, device: torch.device, rows: IntArray
) -> BlockMask:
    """depth, subtree_stop: of every token, a multiple of BLOCK; window: tokens one sees, itself included; 0: all.

    rows: the tokens that ask, in increasing order, a multiple of BLOCK.
    """
    first_depth = depth - window + 1 if window else np.zeros_like(depth)
    stops, depths, firsts, asking = (x.reshape(-1, BLOCK) for x in (subtree_stop, depth, first_depth[rows], rows))
    first, last = asking[:, :1], asking[:, -1:]
    start = np.arange(len(stops))[None, :] * BLOCK
    # The last query of a block before the last to be in the subtree of a key: all are. The first: some may be.
    some = (start <= last) & (stops.max(1) > first) & (depths.max(1) >= firsts.min(1)[:, None])
    full = (start + BLOCK <= first) & (stops.min(1) > last) & (depths.min(1) >= firsts.max(1)[:, None])

    def listed(blocks: npt.NDArray[np.bool_]) -> list[Tensor]:
        """How many keys' blocks each block of queries has, int32 [1, 1, A], and their indices first, [1, 1, A, B]."""
        counts, order = blocks.sum(1), np.argsort(~blocks, axis=1, kind="stable")
        return [to_device(x, device, torch.int32)[None, None] for x in (counts, order)]

    bounds = (subtree_stop, depth, first_depth)
    stop_of, depth_of, first_of = (to_device(x, device, torch.int32) for x in bounds)

    def seen(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (key <= row) & (row < stop_of[key]) & (depth_of[key] >= first_of[row])

    def seen_by_row(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen(_batch, _head, row_of[query], key)

    # Where all ask, a query is its own row, and the kernel need not look it up.
    row_of = to_device(rows, device, torch.int32)
    visible = seen if np.array_equal(rows, np.arange(len(depth))) else seen_by_row
    shape = (len(rows), len(depth))
    partial, whole = listed(some & ~full), listed(full)
    return BlockMask.from_kv_blocks(*partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=shape)


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    """The number lies in a tensor: a plain one could be made a variable, which the kernel's compiler cannot take."""
    cap = torch.tensor(softcap, device=device)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@cache
def _kernel(device_type: str) -> Callable[..., Any]:
    if device_type != "cuda":
        return flex_attention
    # With and without gradients, capped and not, ...: never so many that a run should end for one more.
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, **COMPILATION)
