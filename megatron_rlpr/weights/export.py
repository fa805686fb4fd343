"""The model's weights as a stream of full tensors with Hugging Face names, the same on every rank.

Parameters travel in buckets of bounded size. Per bucket: the owning stage's tensor-parallel ranks gather their shards
(of experts, those ranks of the stage that share them, who send them to the stage's other expert-parallel ranks), the
stage sends them to the other stages, and every rank puts the full tensors together. While one bucket is being used the
next one is gathered, so two exist at once; with one rank the stream yields views of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rlpr.weights.architectures import hf_manifest, parameter_table
from megatron_rlpr.weights.buckets import in_buckets, one_ahead
from megatron_rlpr.weights.local_parameters import in_bf16, local_parameters
from megatron_rlpr.weights.shape import ModelShape

NamedTensors = list[tuple[str, torch.Tensor]]
T = TypeVar("T")


class _Owner(NamedTuple):
    """A pipeline stage, its one expert-parallel rank (None: all of them hold the same), and whether it is an expert."""

    stage: int
    expert_rank: int | None
    of_expert: bool


class WeightExporter:
    """Exports one model again and again. All ranks make it together and iterate together."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        shape: ModelShape,
        bucket_mb: float,
        values: Callable[[torch.Tensor], torch.Tensor] = in_bf16,
    ) -> None:
        """bucket_mb: size of a bucket in MiB; a parameter that is larger travels alone.

        values: a parameter's, plain, on its device; a policy's memory may be elsewhere (`actor.memory`).
        """
        self._values = values
        self._shape = shape
        self._table = parameter_table(shape)
        local = local_parameters(chunks, shape)
        self._tensors = {p.index: p.tensor for p in local if not p.mapping.is_copy}
        self._device = local[0].tensor.device
        self.dtype = local[0].tensor.dtype
        """Of every exported tensor: the model's."""
        self._cut_groups = (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_expert_tensor_parallel_group(),
        )
        """The ranks that cut a layer, and those that cut an expert."""
        self._pp_group = parallel_state.get_pipeline_model_parallel_group()
        self._ep_group = parallel_state.get_expert_model_parallel_group()
        self.stage, self._expert_rank = dist.get_rank(self._pp_group), dist.get_rank(self._ep_group)
        """Of the pipeline: this rank's."""
        self._whole = {dist.get_world_size(g) for g in (*self._cut_groups, self._pp_group, self._ep_group)} == {1}
        self._buckets = self._fill_buckets(int(bucket_mb * 2**20))

    def manifest(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> full shape of everything the stream holds, in its order, without moving any weight."""
        return hf_manifest(self._shape)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full contiguous tensor) in the manifest's order.

        Where buckets are gathered from other ranks, the next one is on its way while the last one is being used.
        """
        return chain.from_iterable(self.buckets() if self._whole else one_ahead(self.buckets()))

    @property
    def is_first_of_stage(self) -> bool:
        """True on one of the ranks that hold the same layers."""
        data_rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        return data_rank == dist.get_rank(self._cut_groups[0]) == 0

    def names_of_stages(self) -> list[list[str]]:
        """By pipeline stage, what `of_stage` yields there."""
        names: list[list[str]] = [[] for _ in range(dist.get_world_size(self._pp_group))]
        for owner, indices in self._buckets:
            names[owner.stage] += [tensor.name for index in indices for tensor in self._table[index].hf]
        return names

    def of_stage(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As iteration, but only what this rank's pipeline stage holds, which is not sent to the others. Collective
        among the ranks of the stage."""
        mine = ((owner, indices) for owner, indices in self._buckets if owner.stage == self.stage)
        exported = (self._export(owner, indices, within_stage=True) for owner, indices in mine)
        return chain.from_iterable(exported if self._whole else one_ahead(exported))

    def buckets(self) -> Iterator[NamedTensors]:
        """The same stream, one bucket at a time.

        Collective: every rank must take all of it. Tensors may be views of the live weights: read them before the
        next update and never write. Their storage is not used again for later buckets.
        """
        for owner, indices in self._buckets:
            yield self._export(owner, indices)

    @torch.no_grad()
    def _export(self, owner: _Owner, indices: list[int], within_stage: bool = False) -> NamedTensors:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of the thread that exports ahead
        shards = self._all_shards(owner, indices, within_stage)
        named: NamedTensors = []
        for index in indices:
            mapping = self._table[index]
            named += zip((t.name for t in mapping.hf), mapping.join(shards.pop(index)), strict=True)
        return named

    def _all_shards(self, owner: _Owner, indices: list[int], within_stage: bool) -> dict[int, list[torch.Tensor]]:
        """Table index -> the shards of all tensor-parallel ranks, on every rank (of the owner's stage alone)."""
        if self._whole:
            return {index: [self._values(self._tensors[index])] for index in indices}
        stage, expert_rank, of_expert = owner
        group, size = self._cut_groups[of_expert], self._cut_size(indices[0])
        counts = [self._table[index].shard_numel(size) for index in indices]
        gathered = torch.empty(size, sum(counts), dtype=self.dtype, device=self._device)
        if self.stage == stage and expert_rank in (None, self._expert_rank):
            mine = torch.cat([self._values(self._tensors[index]).flatten() for index in indices])
            dist.all_gather(list(gathered.unbind()), mine, group=group)
        if self.stage == stage and expert_rank is not None:
            dist.broadcast(gathered, dist.get_global_rank(self._ep_group, expert_rank), group=self._ep_group)
        if dist.get_world_size(self._pp_group) > 1 and not within_stage:
            dist.broadcast(gathered, dist.get_global_rank(self._pp_group, stage), group=self._pp_group)
        shapes = [self._table[index].shard_shape(size) for index in indices]
        by_parameter = zip(indices, gathered.split(counts, dim=1), shapes, strict=True)
        return {index: [flat.view(shape) for flat in part] for index, part, shape in by_parameter}

    def _cut_size(self, index: int) -> int:
        """How many ranks cut a parameter."""
        return dist.get_world_size(self._cut_groups[self._table[index].of_expert])

    def _fill_buckets(self, limit_bytes: int) -> list[tuple[_Owner, list[int]]]:
        """Consecutive entries of the table that one owner has."""

        def nbytes(index: int) -> int:
            size = self._cut_size(index)
            return self._table[index].shard_numel(size) * size * self.dtype.itemsize

        owners = self._owners()
        by_owner = groupby(owners, owners.__getitem__)
        return [(owner, bucket) for owner, theirs in by_owner for bucket in in_buckets(theirs, nbytes, limit_bytes)]

    def _owners(self) -> dict[int, _Owner]:
        """Table index -> who holds it, in table order. Raises ValueError for a parameter that is nowhere."""
        in_stage = _gather_from(self._ep_group, set(self._tensors))
        in_all = set.intersection(*in_stage)
        expert_rank_of = {
            index: None if index in in_all else rank for rank, indices in enumerate(in_stage) for index in indices
        }
        stages = _gather_from(self._pp_group, expert_rank_of)
        owner_of = {
            index: _Owner(stage, rank, self._table[index].of_expert)
            for stage, held in enumerate(stages)
            for index, rank in held.items()
        }
        wanted = [index for index, mapping in enumerate(self._table) if not mapping.is_copy]
        missing = [self._table[index].megatron[0] for index in wanted if index not in owner_of]
        if missing:
            raise ValueError(f"no rank holds {', '.join(missing)}")
        return {index: owner_of[index] for index in wanted}


def _gather_from(group: dist.ProcessGroup, mine: T) -> list[T]:
    """What every rank of the group has, in rank order."""
    found: list[T] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found
