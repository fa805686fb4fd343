"""A forest of prefixes as a batch for an attention kernel with paged keys and values.

Every node is one sequence: its queries are the node's own tokens, its keys the path from the root to the node's end,
and the kernel's causal mask is aligned at the bottom right. Where not all tokens ask, every piece of a node that does
is one: its keys end with it. Keys lie in pages of a cache, and a sequence is a list of
pages, so nodes share all pages that their ancestors fill; the last, partly filled page of a parent is written again for
every child, which is less than one page a node. A sliding window is the kernel's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from megatron_rlpr.actor.attention.block_layout import Runs, attention_runs
from megatron_rlpr.actor.attention.query_rows import pieces
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

PAGE_TOKENS = 32
"""The kernel takes multiples of 32; small pages repeat less."""


@dataclass(frozen=True)
class PagedPaths:
    """N nodes in token order, or pieces of them.

    slots: int64 [T + W], where keys and values are written (slot = page * PAGE_TOKENS + place): every token's, then
    those of `repeated`, int64 [W], the tokens that children have in pages of their own. pages: how many there are.
    page_table: int32 [N, longest], every node's pages, padded with 0. query_bounds: int32 [N + 1]. key_counts: int32
    [N]. window: 0 for none. nodes, rows: for backward.
    """

    slots: torch.Tensor
    repeated: torch.Tensor
    pages: int
    page_table: torch.Tensor
    query_bounds: torch.Tensor
    key_counts: torch.Tensor
    window: int
    nodes: Nodes
    rows: IntArray | None
    dtype: torch.dtype
    _caches: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def cache(self, kv_heads: int, dim: int) -> torch.Tensor:
        """Keys and values of every page, [pages, kv_heads, 2 * PAGE_TOKENS, dim]; every layer writes the same slots.

        The other slots are 0: the kernel masks what they hold, but nan times 0 would not be 0.
        """
        shape = (self.pages, kv_heads, 2 * PAGE_TOKENS, dim)
        if shape not in self._caches:
            self._caches[shape] = torch.zeros(shape, dtype=self.dtype)
        return self._caches[shape]

    @cached_property
    def runs(self) -> Runs:
        """The same attention in blocks of rows: no kernel computes the gradients."""
        return attention_runs(self.nodes, self.dtype, torch.device("cpu"), self.window, rows=self.rows)


def paged_paths(nodes: Nodes, dtype: torch.dtype, window: int = 0, rows: IntArray | None = None) -> PagedPaths:
    """The pages of a forest. rows: the tokens that ask, in increasing order; None: all."""
    tables: list[IntArray] = []
    slots, repeated, repeated_slots, pages = [], [], [], 0
    for path, size, parent in zip(nodes.paths, nodes.stop - nodes.start, nodes.parent, strict=True):
        before = path[: len(path) - size]
        shared = len(before) // PAGE_TOKENS
        own = -(-len(path) // PAGE_TOKENS) - shared
        inherited = tables[parent][:shared] if parent >= 0 else np.empty(0, dtype=np.int64)
        tables.append(np.concatenate([inherited, np.arange(pages, pages + own)]))
        again = before[shared * PAGE_TOKENS :]
        here = np.arange(len(again) + size) + pages * PAGE_TOKENS
        repeated.append(again)
        repeated_slots.append(here[: len(again)])
        slots.append(here[len(again) :])
        pages += own
    of_nodes = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in zip(of_nodes, tables, strict=True):
        row[: len(table)] = table
    asking, start, stop = pieces(nodes, rows)
    path_lengths = np.array([len(path) for path in nodes.paths])
    return PagedPaths(
        slots=torch.from_numpy(np.concatenate(slots + repeated_slots)),
        repeated=torch.from_numpy(np.concatenate(repeated)),
        pages=pages,
        page_table=torch.from_numpy(of_nodes[asking]),
        query_bounds=torch.from_numpy(np.cumsum(np.append(0, stop - start))).to(torch.int32),
        key_counts=torch.from_numpy(path_lengths[asking] - (nodes.stop[asking] - stop)).to(torch.int32),
        window=window,
        nodes=nodes,
        rows=rows,
        dtype=dtype,
    )
