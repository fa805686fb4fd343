"""What an export moves for every parameter, and in which order; from shapes and sizes of groups alone.

An engine's rank is the global rank modulo the engine's size, and those that cut a layer count as fast (Megatron's
order). So where both sizes are equal a rank's shard is what its engine needs already, but for the order of rows, and
nothing crosses tensor-parallel ranks. Otherwise the ranks that cut a layer send each other what the other's slices take
of a shard. Only slices go to the other stages.

    shard ──alone?── slices ───────────────────────────────────────┬─> the stage's expert-parallel ranks ─> other stages
      └──> with what those of others have for them ─> slices ──────┘

Where the expert-parallel ranks of a stage belong to different ranks of an engine, who holds an expert deals out what
each needs of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import gcd, prod
from typing import NamedTuple

import torch

from megatron_rlpr.weights.engine_slices import WHOLE, EngineRank, Slice, slices_of
from megatron_rlpr.weights.mapping import HfTensor, ParamMapping, Shape, TensorLayout


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

    def slices(self, index: int, rank: int | None = None) -> tuple[Slice, ...]:
        """Of every Hugging Face tensor of a parameter, in its order, what that rank of the engine gets; None: this one.
        They are without names, since layers and experts share them."""
        return _slices(*self.table[index].kind, self.engine if rank is None else self._of(rank))

    @property
    def experts_are_dealt(self) -> bool:
        """Whether the stage's ranks that hold other experts have another engine rank."""
        return self.expert_tensor % self.engine.size > 0

    def to_whole(self, index: int, shards: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The shards of a parameter -> its full Hugging Face tensors; where possible views."""
        return self.table[index].join(shards)

    def to_slices(self, index: int, shards: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Its own shard where a rank is alone, else all -> the slices; where possible views."""
        mapping, size = self.table[index], self.cut_size(index)
        if self.alone(index) and size > 1 and mapping.layout.cut_dim is not None:
            pieces = mapping.layout.unfuse(shards[0], mapping.piece_shapes(size))
            cuts = zip(self.slices(index), pieces, strict=True)
            return [piece if cut.dim is None else piece.narrow(cut.dim, 0, cut.shape[cut.dim]) for cut, piece in cuts]
        return [cut.of(full) for cut, full in zip(self.slices(index), self.to_whole(index, shards), strict=True)]

    def travelling(self, index: int, source: int, ranks: Collection[int]) -> list[Shape]:
        """Of a parameter, what the rank `source` of those who cut it has for what these ranks of the engine get: the
        parts of its pieces that reach into the slices of one rank, or else its shard."""
        parts = self._parts(index, source, ranks)
        if parts is not None:
            return [part.shape for part in parts]
        size = self.cut_size(index)
        needed = any(source in _sources(*self.table[index].kind, size, self._of(rank)) for rank in ranks)
        return [self.table[index].shard_shape(size)] if needed else []

    def cut_out(self, index: int, shard: torch.Tensor, source: int, ranks: Collection[int]) -> list[torch.Tensor]:
        """What is `travelling`, from the shard of `source`; where possible views."""
        parts = self._parts(index, source, ranks)
        if parts is None:
            return [shard] if self.travelling(index, source, ranks) else []
        mapping = self.table[index]
        pieces = mapping.layout.unfuse(shard, mapping.piece_shapes(self.cut_size(index)))
        return [part.of(piece) for part, piece in zip(parts, pieces, strict=True)]

    def put_together(
        self, index: int, arrived: Sequence[Sequence[torch.Tensor]], ranks: Collection[int]
    ) -> Sequence[torch.Tensor]:
        """What was `travelling`, by source -> the slices, if it is for this rank of the engine alone; for several the
        full Hugging Face tensors, which are NaN where none of these reaches."""
        mapping, size = self.table[index], self.cut_size(index)
        if self._parts(index, 0, ranks) is not None:
            dim = mapping.layout.cut_dim or 0
            return [torch.cat(parts, dim) for parts in zip(*arrived, strict=True)]
        some = next(shards[0] for shards in arrived if shards)
        missing = some.new_full((), float("nan")).expand(mapping.shard_shape(size))
        shards = [of_source[0] if of_source else missing for of_source in arrived]
        return self.to_slices(index, shards) if len(ranks) == 1 else self.to_whole(index, shards)

    def _parts(self, index: int, source: int, ranks: Collection[int]) -> tuple[Slice, ...] | None:
        """None where shards travel: to several ranks, or where a shard is but a part of the fusion of a piece."""
        kind, size = self.table[index].kind, self.cut_size(index)
        if len(ranks) > 1 or self.table[index].cuts(size)[1] > 1:
            return None
        (rank,) = ranks
        return _parts(*kind, size, source, self._of(rank))

    def _of(self, rank: int) -> EngineRank:
        return EngineRank(rank, self.engine.size)

    def gathered_numel(self, index: int) -> int:
        """Elements of all shards; 0 where a rank is alone."""
        size = self.cut_size(index)
        return 0 if self.alone(index) else size * self.table[index].shard_numel(size)

    def slices_numel(self, index: int) -> int:
        """Elements of the slices."""
        return sum(prod(cut.shape) for cut in self.slices(index))

    def most_numel(self, index: int) -> int:
        """Elements of a parameter that any rank holds at once besides its shard: the same on all ranks."""
        first = self.slices(index, 0)  # later ones may lack vocabulary rows
        return max(self.gathered_numel(index), sum(prod(cut.shape) for cut in first))

    def received_numel(self, index: int, owner: Owner, stage: int, expert_rank: int, place: int | None = None) -> int:
        """Elements of a parameter that reach a rank of that stage and expert-parallel rank from others.

        place: the rank's among those who cut the parameter; None: the one that gets most.
        """
        if stage != owner.stage or owner.expert_rank not in (None, expert_rank):
            return self.slices_numel(index)
        if self.alone(index):
            return 0
        size = self.cut_size(index)
        dealt = owner.of_expert and owner.expert_rank is not None and self.experts_are_dealt
        ranks = range(self.engine.size) if dealt else (self.engine.rank,)
        coming = [sum(map(prod, self.travelling(index, source, ranks))) for source in range(size)]
        step = gcd(size, self.engine.size)
        places = range(self.engine.rank % step, size, step) if place is None else (place,)
        return sum(coming) - min(coming[own] for own in places)

    @cached_property
    def _alone(self) -> list[bool]:
        kinds: dict[object, bool] = {}  # layers repeat
        return [
            kinds[kind]
            if (kind := (m.of_expert, *m.kind)) in kinds
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


def _nameless(layout: TensorLayout, shapes: Sequence[Shape]) -> ParamMapping:
    return ParamMapping((), tuple(HfTensor("", shape) for shape in shapes), layout)


@cache
def _slices(layout: TensorLayout, shapes: tuple[Shape, ...], engine: EngineRank) -> tuple[Slice, ...]:
    return slices_of(_nameless(layout, shapes), engine)


@cache
def _sources(layout: TensorLayout, shapes: tuple[Shape, ...], size: int, engine: EngineRank) -> frozenset[int]:
    """Of `size` ranks that cut a parameter, those whose piece reaches into a slice; all parts of a piece do."""
    mapping = _nameless(layout, shapes)
    pieces, parts = mapping.cuts(size)
    return frozenset(
        piece * parts + part
        for tensor, cut in zip(mapping.hf, _slices(layout, shapes, engine), strict=True)
        for piece in range(pieces)
        for start, stop in [mapping.bounds(tensor, piece, pieces)]
        if max(start, cut.start) < min(stop, cut.stop)
        for part in range(parts)
    )


@cache
def _parts(
    layout: TensorLayout, shapes: tuple[Shape, ...], size: int, source: int, engine: EngineRank
) -> tuple[Slice, ...]:
    """Of each piece that the rank `source` of `size` holds, what reaches into the engine's slice; may be nothing."""
    mapping, dim = _nameless(layout, shapes), layout.cut_dim
    assert dim is not None, "what is not cut does not travel"
    found = []
    for tensor, cut in zip(mapping.hf, _slices(layout, shapes, engine), strict=True):
        start, stop = mapping.bounds(tensor, source, size)
        first, last = max(start, cut.start), min(stop, cut.stop)
        length = max(0, last - first)
        begin = first - start if length else 0
        shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
        found.append(Slice("", shape, dim, begin, begin + length, length))
    return tuple(found)
