"""Give every data-parallel rank its share of the sorted sequences: near-equal FLOPs, little computed twice.

1. The sorted sequences are cut into contiguous pieces of near-equal cost, a multiple of the number of ranks. A cut may
   miss its target where that saves computing a prefix again; the more pieces a rank gets, the less a miss matters.
2. Pieces go to ranks costliest first, each to the least loaded rank. (Exchanging pieces afterwards gained nothing on
   batches of 64 to 6,144 sequences.)
3. This is tried from one piece per rank (a plain contiguous split) to many. The split whose fullest rank is cheapest
   wins, measured after cutting every rank's share into micro-batches, so that prefixes computed again count.

Everything is a function of the requests, with ties broken by position and sums taken in order (numpy's own sum may
group terms differently on another CPU): every rank finds the same plan.
"""

from __future__ import annotations

import heapq

import numpy as np

from megatron_rlpr.packing.cost import CostModel, SequenceCosts
from megatron_rlpr.packing.cuts import cut_under_budget
from megatron_rlpr.packing.sequences import SortedSequences
from megatron_rlpr.types import DoubleArray, IntArray

PIECES_PER_RANK = (1, 2, 4, 8, 16, 32, 64)
FINER_MUST_GAIN = 0.002


def cut_into_pieces(until: DoubleArray, again: DoubleArray, num_pieces: int, pieces_per_rank: int) -> list[int]:
    """Starts of at most num_pieces contiguous runs of near-equal cost.

    until: [n + 1] cost of everything before a position; again: [n] cost of computing what a cut there separates again.
    """
    size, number = until[-1] / num_pieces, np.arange(1, num_pieces)
    low = np.maximum(np.searchsorted(until, (number - 0.5) * size), 1)
    high = np.minimum(np.searchsorted(until, (number + 0.5) * size) + 1, len(again))
    number, low, high = (values[low < high] for values in (number, low, high))
    if not len(low):
        return [0]
    # The places around every target, one window after the other; each window's first cheapest place is a start.
    width = high - low
    first = np.cumsum(width) - width
    window = np.repeat(np.arange(len(width)), width)
    place = np.arange(len(window)) + (low - first)[window]
    penalty = np.abs(until[place] - (number * size)[window]) / pieces_per_rank + again[place]
    cheapest = np.flatnonzero(penalty == np.minimum.reduceat(penalty, first)[window])
    starts = place[cheapest[np.unique(window[cheapest], return_index=True)[1]]]
    return [0, *np.unique(starts).tolist()]


def assign_pieces(cost: DoubleArray, num_ranks: int) -> IntArray:
    """The rank of every piece, int64 [len(cost)]: costliest first, each to the least loaded rank (Graham's LPT)."""
    rank_of = np.zeros(len(cost), dtype=np.int64)
    heap = [(0.0, rank) for rank in range(num_ranks)]
    for piece in np.argsort(-cost, kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        rank_of[piece] = rank
        heapq.heappush(heap, (load + float(cost[piece]), rank))
    return rank_of


def distribute(
    sequences: SortedSequences, model: CostModel, num_ranks: int, max_tokens: int, run_flops: float
) -> list[SortedSequences]:
    """The share of every rank, in sorted order; a rank's share may be empty.

    max_tokens: budget of a micro-batch; run_flops: what one more micro-batch costs beside its tokens.
    """
    if num_ranks == 1 or not len(sequences):
        return [sequences, *[sequences.subset(np.empty(0, dtype=np.int64))] * (num_ranks - 1)]
    costs = _with_budget_cuts(sequences, model, max_tokens, run_flops)
    until = np.concatenate([[0.0], np.cumsum(costs.added)])
    in_every_rank = float(costs.again[1:].min()) if len(sequences) > 1 else 0.0
    best: list[SortedSequences] = []
    cheapest = np.inf
    for pieces_per_rank in PIECES_PER_RANK:
        num_pieces = min(num_ranks * pieces_per_rank, len(sequences))
        starts = cut_into_pieces(until, costs.again, num_pieces, pieces_per_rank)
        piece_cost = np.diff(until[[*starts, len(sequences)]]) + np.maximum(costs.again[starts] - in_every_rank, 0)
        rank_of = np.repeat(assign_pieces(piece_cost, num_ranks), np.diff([*starts, len(sequences)]))
        shares = [sequences.subset(np.flatnonzero(rank_of == rank)) for rank in range(num_ranks)]
        fullest = _fullest(shares, model, max_tokens, run_flops, cheapest * (1 - FINER_MUST_GAIN))
        if fullest is not None:
            best, cheapest = shares, fullest
        if num_pieces == len(sequences):
            break
    return best


def share_flops(share: SortedSequences, model: CostModel, max_tokens: int, run_flops: float) -> float:
    """Cost of a share after it is cut under the token budget."""
    costs = SequenceCosts.of(share, model)
    starts = cut_under_budget(share.length, share.shared, costs.again + run_flops, max_tokens)
    return costs.run_flops(starts) + run_flops * len(starts)


def _fullest(
    shares: list[SortedSequences], model: CostModel, max_tokens: int, run_flops: float, limit: float
) -> float | None:
    """Cost of the costliest share, None where one reaches the limit: most fail on the first looked at."""
    fullest = 0.0
    for share in sorted(shares, key=lambda share: -float((share.length - share.shared).sum())):
        fullest = max(fullest, share_flops(share, model, max_tokens, run_flops))
        if fullest >= limit:
            return None
    return fullest


def _with_budget_cuts(sequences: SortedSequences, model: CostModel, max_tokens: int, run_flops: float) -> SequenceCosts:
    """Costs in which the sequences that would start a micro-batch, were all on one rank, count in full."""
    costs = SequenceCosts.of(sequences, model)
    starts = cut_under_budget(sequences.length, sequences.shared, costs.again + run_flops, max_tokens)
    added = costs.added.copy()
    added[starts] += costs.again[starts]
    return SequenceCosts(added, costs.again)
