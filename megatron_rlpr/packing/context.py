"""Share the tokens of a micro-batch among context-parallel ranks: equal counts, near-equal attention.

The ranks wait for each other in every layer, whose linear parts cost as much as a rank has tokens, and whose attention
costs as much as these tokens see keys. So all ranks get the same number of tokens, and nearly the same of pairs:

1. The tokens, in their order, are cut into blocks, as many for every rank, of at most two lengths that differ by one.
2. The blocks of a length go to ranks costliest first, one to every rank in turn; in each turn the rank that has the
   least so far gets the costliest (Graham's LPT with equal counts). After every turn, two ranks differ by no more
   than blocks of one turn do: next neighbours in the order of costs.
3. This is tried with few blocks first, because every block is a piece that attention computes by itself.

All of it takes O(tokens), and is a function of the micro-batch: every rank finds the same shares.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron_rlpr.packing.tree import ContextShare, TreeMicroBatch
from megatron_rlpr.types import IntArray

BLOCKS_PER_RANK = (2, 4, 8, 16)
SHORTEST_BLOCK = 128
"""Tokens, below which more blocks are not tried: a tile of the attention kernels."""
EVEN = 1.02
"""The fullest rank over the mean, from which on more blocks are not tried."""


def share_of(micro_batch: TreeMicroBatch, rank: int, ranks: int) -> TreeMicroBatch:
    """What one of so many context-parallel ranks computes: its tokens, and the wanted rows that these answer.

    Raises ValueError when the tokens cannot be divided; `plan` pads them to a multiple.
    """
    if ranks == 1:
        return micro_batch
    share = ContextShare(even_shares(micro_batch.positions + 1, ranks), rank)
    place = np.full(micro_batch.num_tokens, -1, dtype=np.int64)
    place[share.tokens] = np.arange(len(share.tokens))
    source_row = place[micro_batch.source_row]
    here = source_row >= 0
    wanted = here[micro_batch.row_of_want]
    return replace(
        micro_batch,
        token_ids=micro_batch.token_ids[share.tokens],
        positions=micro_batch.positions[share.tokens],
        source_row=source_row[here],
        target=micro_batch.target[here],
        want_request=micro_batch.want_request[wanted],
        want_offset=micro_batch.want_offset[wanted],
        row_of_want=(np.cumsum(here) - 1)[micro_batch.row_of_want[wanted]],
        padding=int((share.tokens >= micro_batch.num_tokens - micro_batch.padding).sum()),
        share=share,
    )


def even_shares(cost: IntArray, ranks: int) -> IntArray:
    """The tokens of every rank in increasing order: int64 [ranks, tokens / ranks]. cost: [tokens], of attention."""
    if len(cost) % ranks:
        raise ValueError(f"{len(cost)} tokens cannot be divided among {ranks} context-parallel ranks")
    best, fullest = np.empty(0, dtype=np.int64), np.inf
    for blocks in BLOCKS_PER_RANK:
        shares = dealt(cost, ranks, blocks)
        load = int(cost[shares].sum(1).max())
        if load < fullest:
            best, fullest = shares, load
        if fullest * ranks <= cost.sum() * EVEN or len(cost) < 2 * blocks * ranks * SHORTEST_BLOCK:
            break
    return best


def dealt(cost: IntArray, ranks: int, blocks: int) -> IntArray:
    """As `even_shares`, with so many blocks for every rank, or one for each of its tokens where these are fewer."""
    count = len(cost) // ranks
    blocks = min(blocks, count)
    size, longer = divmod(count, blocks)
    lengths = np.repeat([size + 1, size], [ranks * longer, ranks * (blocks - longer)])
    block_cost = np.add.reduceat(cost, np.cumsum(lengths) - lengths)
    owner, load = np.empty(len(lengths), dtype=np.int64), np.zeros(ranks, dtype=np.int64)
    for of_one_length in np.split(np.arange(len(lengths)), [ranks * longer]):
        costliest_first = of_one_length[np.argsort(-block_cost[of_one_length], kind="stable")]
        for turn in costliest_first.reshape(-1, ranks):
            owner[turn] = np.argsort(load, kind="stable")
            load[owner[turn]] += block_cost[turn]
    return np.argsort(np.repeat(owner, lengths), kind="stable").reshape(ranks, count)
