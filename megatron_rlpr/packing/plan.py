"""From requests to micro-batches: which rank computes what, and in which trees.

    requests -> sort, find shared prefixes (sequences.py)
             -> a near-equal share of the FLOPs for every data-parallel rank (distribute.py)
             -> each share cut into micro-batches under the token budget (cuts.py)
             -> every micro-batch a forest with its wanted rows (tree.py)

Plain packing is the same path with nothing shared: every sequence is a root of its own.

Invariants (tests/unit/packing/test_packing_plan.py):
1. Every wanted (request, offset) occurs exactly once over all ranks and micro-batches.
2. No micro-batch has more than max_tokens tokens, padding included; all are multiples of sequence_multiple.
3. Every rank has the same number of micro-batches, at least min_micro_batches. A rank with less work gets fillers at
   the end: padding alone (one root, no wanted rows), which takes part in collectives and adds nothing.
4. The plan is a function of the arguments: every rank computes the same one, and builds only its own trees.
5. A request that wants no rows is in no micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from megatron_rlpr.packing.cost import CostModel, SequenceCosts
from megatron_rlpr.packing.cuts import cut_evenly
from megatron_rlpr.packing.distribute import distribute
from megatron_rlpr.packing.sequences import SortedSequences, sort_sequences
from megatron_rlpr.packing.tree import TreeMicroBatch, build_tree
from megatron_rlpr.types import ScoreRequest, UserError

MICRO_BATCH_OVERHEAD_TOKENS = 64
"""A micro-batch is priced as this many tokens beside its own: launches and small matrices, a percent of a full one."""


@dataclass(frozen=True)
class Plan:
    """Who computes what. `runs[rank][i]` are the sequences of micro-batch i of a rank; trees are built on demand.

    rank_flops: what each rank computes, by the cost model (units of CostModel; padding not counted).
    """

    runs: tuple[tuple[SortedSequences, ...], ...]
    rank_flops: tuple[float, ...]
    sequence_multiple: int

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of every rank."""
        return len(self.runs[0])

    def for_rank(self, rank: int) -> list[TreeMicroBatch]:
        """Build the micro-batches of one data-parallel rank."""
        return [build_tree(run, self.sequence_multiple) for run in self.runs[rank]]

    @cached_property
    def micro_batches(self) -> tuple[tuple[TreeMicroBatch, ...], ...]:
        """micro_batches[rank][i], built for all ranks; a rank that needs only its own calls `for_rank`."""
        return tuple(tuple(self.for_rank(rank)) for rank in range(len(self.runs)))

    @property
    def num_tokens(self) -> int:
        """Tokens all ranks compute, prefixes that several micro-batches need counted each time; without padding."""
        return int(sum((run.length - run.shared).sum() for runs in self.runs for run in runs))

    @property
    def imbalance(self) -> float:
        """FLOPs of the fullest rank over the mean, minus 1 (0: perfectly even)."""
        total = sum(self.rank_flops)
        return max(self.rank_flops) * len(self.rank_flops) / total - 1.0 if total else 0.0


def plan(
    requests: Sequence[ScoreRequest],
    max_tokens: int,
    data_parallel_size: int,
    share_prefixes: bool = True,
    cost_model: CostModel = CostModel(),  # noqa: B008 - frozen
    sequence_multiple: int = 1,
    min_micro_batches: int = 1,
) -> Plan:
    """Pack requests into micro-batches of at most max_tokens distinct tokens, balanced over data-parallel ranks.

    share_prefixes=False computes every sequence alone. sequence_multiple: token counts are padded to a multiple of it
    (sequence parallelism, FP8). min_micro_batches: of every rank; a virtual pipeline needs as many as it has stages.
    Raises UserError when one sequence alone exceeds the budget.
    """
    if data_parallel_size < 1 or sequence_multiple < 1:
        raise ValueError(
            f"data_parallel_size={data_parallel_size} and sequence_multiple={sequence_multiple} must be positive"
        )
    budget = max_tokens - max_tokens % sequence_multiple
    sequences = sort_sequences(requests, share_prefixes)
    _check_budget(sequences, max_tokens, sequence_multiple)
    run_flops = cost_model.linear_flops_per_token * MICRO_BATCH_OVERHEAD_TOKENS
    runs, rank_flops = [], []
    for share in distribute(sequences, cost_model, data_parallel_size, budget, run_flops):
        costs = SequenceCosts.of(share, cost_model)
        starts = cut_evenly(share.length, share.shared, costs.again + run_flops, budget)
        bounds = [*starts, len(share)]
        runs.append([share.subset(np.arange(a, b)) for a, b in pairwise(bounds)])
        rank_flops.append(costs.run_flops(starts))
    filler = sequences.subset(np.empty(0, dtype=np.int64))
    count = max(1, min_micro_batches, *(len(r) for r in runs))
    return Plan(tuple(tuple(r + [filler] * (count - len(r))) for r in runs), tuple(rank_flops), sequence_multiple)


def _check_budget(sequences: SortedSequences, max_tokens: int, sequence_multiple: int) -> None:
    if max_tokens < sequence_multiple:
        raise UserError(
            f"actor.max_tokens_per_micro_batch={max_tokens} is less than the {sequence_multiple} tokens that a "
            f"micro-batch is padded to (sequence parallelism, FP8): set it to at least {sequence_multiple}"
        )
    if not len(sequences):
        return
    longest = int(sequences.length.argmax())
    needed = -(-int(sequences.length[longest]) // sequence_multiple) * sequence_multiple
    if needed > max_tokens:
        raise UserError(
            f"sequence {int(sequences.request[longest])} has {int(sequences.length[longest])} tokens to compute and "
            f"does not fit in a micro-batch of actor.max_tokens_per_micro_batch={max_tokens} tokens: set it to at "
            f"least {needed}, or allow shorter sequences"
        )
