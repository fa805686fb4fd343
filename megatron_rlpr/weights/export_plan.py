"""What an export moves for every parameter, and in which order; from shapes and sizes of groups alone.

An engine's rank is the global rank modulo the engine's size, and those that cut a layer count as fast (Megatron's
order). So where both sizes are equal a rank's shard is what its engine needs already, but for the order of rows, and
nothing crosses tensor-parallel ranks. Otherwise the ranks that cut a layer gather their shards, and cut from the whole
what their own pipeline group's engine rank holds. Only that goes to the other stages.

    shard ──alone?── slices ────────────────────────────────────┬─> the stage's expert-parallel ranks ─> other stages
      └──> gathered over those who cut it ─> whole ─> slices ───┘

The experts of ranks whose engine ranks differ travel whole within the stage, and are cut behind that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch

from megatron_rlpr.weights.engine_slices import WHOLE, EngineRank, Slice, slices_of
from megatron_rlpr.weights.mapping import ParamMapping


class Owner(NamedTuple):
    """A pipeline stage, its one expert-parallel rank (None: all of them hold the same), and whether it is an expert."""

    stage: int
    expert_rank: int | None
    of_expert: bool


@dataclass(frozen=True)
class ExportPlan:
    """For one rank's engine. tensor, expert_tensor: ranks that cut a layer, and an expert.

    ValueError as `slices_of`.
    """

    table: Sequence[ParamMapping]
    tensor: int
    expert_tensor: int
    engine: EngineRank = WHOLE

    def cut_size(self, index: int) -> int:
        """How many ranks cut a parameter."""
        return self.expert_tensor if self.table[index].of_expert else self.tensor

    def alone(self, index: int) -> bool:
        """Whether every rank's own shard holds what its engine rank needs."""
        return self._alone[index]

    def slices(self, index: int) -> tuple[Slice, ...]:
        """Of every Hugging Face tensor of a parameter, in its order, what this rank's engine gets."""
        return self._slices[index]

    @property
    def experts_travel_whole(self) -> bool:
        """Whether the stage's ranks that hold other experts have another engine rank."""
        return self.expert_tensor % self.engine.size > 0

    def to_whole(self, index: int, shards: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The gathered shards of a parameter -> its full Hugging Face tensors; where possible views."""
        return self.table[index].join(shards)

    def to_slices(self, index: int, shards: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Its own shard where a rank is alone, else all gathered ones -> the slices; where possible views."""
        mapping, size = self.table[index], self.cut_size(index)
        if self.alone(index) and size > 1 and mapping.layout.cut_dim is not None:
            pieces = mapping.layout.unfuse(shards[0], mapping.piece_shapes(size))
            cuts = zip(self.slices(index), pieces, strict=True)
            return [piece if cut.dim is None else piece.narrow(cut.dim, 0, cut.shape[cut.dim]) for cut, piece in cuts]
        return [cut.of(full) for cut, full in zip(self.slices(index), self.to_whole(index, shards), strict=True)]

    def gathered_numel(self, index: int) -> int:
        """Elements of all gathered shards; 0 where a rank is alone."""
        size = self.cut_size(index)
        return 0 if self.alone(index) else size * self.table[index].shard_numel(size)

    def slices_numel(self, index: int) -> int:
        """Elements of the slices."""
        return sum(prod(cut.shape) for cut in self.slices(index))

    def most_numel(self, index: int) -> int:
        """Elements of a parameter that any rank holds at once besides its shard: the same on all ranks."""
        first = slices_of(self.table[index], EngineRank(0, self.engine.size))  # later ones may lack vocabulary rows
        return max(self.gathered_numel(index), sum(prod(cut.shape) for cut in first))

    def whole_numel(self, index: int) -> int:
        """Elements of the full Hugging Face tensors."""
        return sum(prod(tensor.shape) for tensor in self.table[index].hf)

    def received_numel(self, index: int, owner: Owner, stage: int, expert_rank: int) -> int:
        """Elements of a parameter that reach a rank of that stage and expert-parallel rank from others."""
        if stage != owner.stage:
            return self.slices_numel(index)
        if owner.expert_rank not in (None, expert_rank):
            return self.whole_numel(index) if self.experts_travel_whole else self.slices_numel(index)
        gathered, size = self.gathered_numel(index), self.cut_size(index)
        return gathered - gathered // size

    @cached_property
    def _slices(self) -> list[tuple[Slice, ...]]:
        return [slices_of(mapping, self.engine) for mapping in self.table]

    @cached_property
    def _alone(self) -> list[bool]:
        kinds: dict[object, bool] = {}  # layers repeat
        return [
            kinds[kind]
            if (kind := (m.layout, m.of_expert, *(t.shape for t in m.hf))) in kinds
            else kinds.setdefault(kind, self._lines_up(m, self.cut_size(index)))
            for index, m in enumerate(self.table)
        ]

    def _lines_up(self, mapping: ParamMapping, size: int) -> bool:
        if mapping.layout.cut_dim is None or size == 1:
            return True
        if size != self.engine.size or mapping.cuts(size) != (size, 1):
            return False
        cuts = [(rank, slices_of(mapping, EngineRank(rank, size))) for rank in range(size)]
        return all(
            mapping.bounds(tensor, rank, size) == (cut.start, cut.stop)
            for rank, of_rank in cuts
            for tensor, cut in zip(mapping.hf, of_rank, strict=True)
        )
