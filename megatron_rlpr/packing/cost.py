"""What sequences cost to compute, in floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_rlpr.packing.sequences import SortedSequences
from megatron_rlpr.types import DoubleArray, IntArray


@dataclass(frozen=True)
class CostModel:
    """FLOPs = linear per token + attention per query-key pair + head per selected row.

    Only ratios matter to a plan, so forward figures also balance a step of forward and backward. The default counts
    tokens alone.
    """

    linear_flops_per_token: float = 1.0
    attention_flops_per_pair: float = 0.0
    head_flops_per_row: float = 0.0

    def flops(self, tokens: int, attention_pairs: int, head_rows: int) -> float:
        """Cost of a micro-batch."""
        return (
            self.linear_flops_per_token * tokens
            + self.attention_flops_per_pair * attention_pairs
            + self.head_flops_per_row * head_rows
        )

    def prefix_flops(self, length: IntArray) -> DoubleArray:
        """Cost of the first `length` tokens of a sequence in linear layers and attention: float64, shape of length."""
        pairs = length * (length + 1) / 2
        return self.linear_flops_per_token * length + self.attention_flops_per_pair * pairs


@dataclass(frozen=True)
class SequenceCosts:
    """What sorted sequences cost one by one, as float64 [n].

    added: what a sequence adds behind its predecessor. again: what it costs more at the start of a tree of its own
    (its shared prefix and shared rows are computed again). A contiguous run a..b costs added[a:b].sum() + again[a].
    Rows are compared with the direct predecessor only, so a row shared over a distance is counted twice.
    """

    added: DoubleArray
    again: DoubleArray

    @classmethod
    def of(cls, sequences: SortedSequences, model: CostModel) -> SequenceCosts:
        """The costs of these sequences in this order."""
        shared_rows = np.zeros(len(sequences), dtype=np.int64)
        if len(sequences) > 1:
            first = np.maximum(sequences.start[1:], sequences.start[:-1])
            last = np.minimum(np.minimum(sequences.stop[1:], sequences.stop[:-1]), sequences.shared_with_targets[1:])
            shared_rows[1:] = np.maximum(last - first, 0)
        alone = model.prefix_flops(sequences.length) + model.head_flops_per_row * (sequences.stop - sequences.start)
        again = model.prefix_flops(sequences.shared) + model.head_flops_per_row * shared_rows
        return cls(alone - again, again)

    def run_flops(self, starts: list[int]) -> float:
        """Cost of all the sequences, cut into runs at `starts` (the first of which is 0)."""
        return sum(self.added.tolist()) + sum(self.again[starts].tolist())
