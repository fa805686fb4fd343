"""The model's weights as a stream of tensors with Hugging Face names: full ones, the same on every rank, or the slices
that this rank's engine holds.

Parameters travel in buckets of bounded size, by the ways of `export_plan`: the owning stage's tensor-parallel ranks
send each other what others need of their shards where one alone will not do (of experts, those ranks of the stage that
share them, who send them to the stage's other expert-parallel ranks), and the stage sends what has come of them to the
other stages. While one bucket is being used the next one is gathered, so two exist at once; with one rank the stream
yields views of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rlpr.weights.architectures import hf_manifest, parameter_table
from megatron_rlpr.weights.buckets import in_buckets, one_ahead
from megatron_rlpr.weights.engine_slices import EngineRank
from megatron_rlpr.weights.export_plan import ExportPlan, Owner
from megatron_rlpr.weights.local_parameters import in_bf16, local_parameters
from megatron_rlpr.weights.mapping import Shape
from megatron_rlpr.weights.shape import ModelShape

NamedTensors = list[tuple[str, torch.Tensor]]
T = TypeVar("T")


class WeightExporter:
    """Exports one model again and again. All ranks make it together and iterate together."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        shape: ModelShape,
        bucket_mb: float,
        values: Callable[[torch.Tensor], torch.Tensor] = in_bf16,
        engine_size: int = 1,
    ) -> None:
        """bucket_mb: size of a bucket in MiB; a parameter that is larger travels alone.

        values: a parameter's, plain, on its device; a policy's memory may be elsewhere (`actor.memory`).
        engine_size: ranks of an engine, consecutive ones, of which each gets its slices; it must divide the ranks of a
        pipeline stage. 1: every rank gets whole tensors.
        """
        self.engine = EngineRank(dist.get_rank() % engine_size, engine_size)
        """Whose slices this rank gets."""
        self.received = 0
        """Bytes that reached this rank from others in the last iteration."""
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
        self._dealt_to = [rank % engine_size for rank in dist.get_process_group_ranks(self._ep_group)]
        """Of the engine: the ranks of those in this stage that hold other experts, in their order."""
        tensor, expert_tensor = (dist.get_world_size(group) for group in self._cut_groups)
        self._plan = ExportPlan(self._table, tensor, expert_tensor, self.engine)
        travelling = any(self._plan.gathered_numel(index) for index in self._tensors)
        self._wanted = {of_expert: self._wanted_by_members(of_expert) for of_expert in (False, True)}
        self._local = not travelling and {dist.get_world_size(g) for g in (self._pp_group, self._ep_group)} == {1}
        """Whether nothing comes from other ranks."""
        self._buckets = self._fill_buckets(int(bucket_mb * 2**20))

    def manifest(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> full shape of everything the stream holds, or slices of, in its order."""
        return hf_manifest(self._shape)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, contiguous tensor or slice) in the manifest's order.

        Where buckets are gathered from other ranks, the next one is on its way while the last one is being used.
        """
        return chain.from_iterable(self.buckets() if self._local else one_ahead(self.buckets()))

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
        return chain.from_iterable(exported if self._local else one_ahead(exported))

    def buckets(self) -> Iterator[NamedTensors]:
        """The same stream, one bucket at a time.

        Collective: every rank must take all of it. Tensors may be views of the live weights: read them before the
        next update and never write. Their storage is not used again for later buckets.
        """
        self.received = 0
        for owner, indices in self._buckets:
            yield self._export(owner, indices)

    def _wanted_by_members(self, of_expert: bool) -> list[set[int]]:
        """For each rank that cuts a parameter: the engine's ranks whose slices it needs, for itself and to deal out."""
        mine = {self.engine.rank}
        if of_expert and self._plan.experts_are_dealt:
            mine = set(self._dealt_to)
        return _gather_from(self._cut_groups[of_expert], mine)

    @torch.no_grad()
    def _export(self, owner: Owner, indices: list[int], within_stage: bool = False) -> NamedTensors:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of the thread that exports ahead
        names = [tensor.name for index in indices for tensor in self._table[index].hf]
        return list(zip(names, self._parts(owner, indices, within_stage), strict=True))

    def _parts(self, owner: Owner, indices: list[int], within_stage: bool) -> Iterable[torch.Tensor]:
        """What the owner's stage, or every rank, gets of the bucket's Hugging Face tensors, in order."""
        plan, in_stage, of_one = self._plan, self.stage == owner.stage, owner.expert_rank is not None
        dealt = of_one and plan.experts_are_dealt
        slices = [cut for index in indices for cut in plan.slices(index)]
        parts: Iterable[torch.Tensor] = ()
        if in_stage and owner.expert_rank in (None, self._expert_rank):
            parts = self._held(owner, indices, plan.to_whole if dealt else plan.to_slices)
        if in_stage and owner.expert_rank is not None:
            if dealt:
                parts = self._dealt(parts, indices, owner.expert_rank)
            else:
                parts = self._sent(parts, [cut.shape for cut in slices], owner.expert_rank, self._ep_group)
        if dist.get_world_size(self._pp_group) > 1 and not within_stage:
            parts = self._sent(parts, [cut.shape for cut in slices], owner.stage, self._pp_group)
        return (part.contiguous() for part in parts)

    def _held(
        self, owner: Owner, indices: list[int], parts_of: Callable[[int, list[torch.Tensor]], Iterable[torch.Tensor]]
    ) -> Iterator[torch.Tensor]:
        """Parts of the bucket's parameters, one after the other, from the shards of who cut them."""
        travelling = [index for index in indices if not self._plan.alone(index)]
        together: dict[int, Sequence[torch.Tensor]] = {}
        if travelling and self.engine.size > 1:
            together = self._put_together(travelling, owner.of_expert)
        elif travelling:
            shards = self._gathered(travelling, self._cut_groups[owner.of_expert])
            together = {index: self._plan.to_whole(index, shards[index]) for index in travelling}
        for index in indices:
            yield from together[index] if index in together else parts_of(index, [self._values(self._tensors[index])])

    def _put_together(self, indices: Sequence[int], of_expert: bool) -> dict[int, Sequence[torch.Tensor]]:
        """By index, what this rank needs of a parameter, from the shards of all who cut it."""
        plan, group, wanted = self._plan, self._cut_groups[of_expert], self._wanted[of_expert]
        me, size = dist.get_rank(group), len(wanted)
        mine = {index: self._values(self._tensors[index]) for index in indices}
        coming = [
            [[] if source == me else plan.travelling(index, source, wanted[me]) for index in indices]
            for source in range(size)
        ]
        outgoing = [
            [] if target == me else [t for i in indices for t in plan.cut_out(i, mine[i], me, wanted[target])]
            for target in range(size)
        ]
        arrived = self._exchanged(outgoing, [list(chain.from_iterable(shapes)) for shapes in coming], group)
        streams = [iter(tensors) for tensors in arrived]
        found: dict[int, Sequence[torch.Tensor]] = {}
        for place, index in enumerate(indices):
            by_source = [list(islice(streams[source], len(coming[source][place]))) for source in range(size)]
            by_source[me] = plan.cut_out(index, mine[index], me, wanted[me])
            found[index] = plan.put_together(index, by_source, wanted[me])
        return found

    def _gathered(self, indices: Sequence[int], group: dist.ProcessGroup) -> dict[int, list[torch.Tensor]]:
        """By index, the shards of all ranks of the group."""
        size = dist.get_world_size(group)
        flat = torch.cat([self._values(self._tensors[index]).flatten() for index in indices])
        gathered = torch.empty(size, flat.numel(), dtype=self.dtype, device=self._device)
        dist.all_gather(list(gathered.unbind()), flat, group=group)
        self.received += gathered.nbytes - flat.nbytes
        shapes = [self._table[index].shard_shape(size) for index in indices]
        parts = gathered.split([prod(shape) for shape in shapes], dim=1)
        return {
            index: [row.view(shape) for row in part] for index, shape, part in zip(indices, shapes, parts, strict=True)
        }

    def _dealt(self, full: Iterable[torch.Tensor], indices: Sequence[int], source: int) -> Sequence[torch.Tensor]:
        """Whole experts of the rank `source` of those that hold others -> the slices of this rank's engine."""
        cuts = [[cut for index in indices for cut in self._plan.slices(index, rank)] for rank in self._dealt_to]
        outgoing: list[list[torch.Tensor]] = [[] for _ in cuts]
        coming: list[list[Shape]] = [[] for _ in cuts]
        mine: list[torch.Tensor] = []
        if self._expert_rank == source:
            tensors = list(full)
            outgoing = [[cut.of(tensor) for cut, tensor in zip(of_rank, tensors, strict=True)] for of_rank in cuts]
            mine, outgoing[source] = outgoing[source], []
        else:
            coming[source] = [cut.shape for cut in cuts[self._expert_rank]]
        return self._exchanged(outgoing, coming, self._ep_group)[source] or mine

    def _exchanged(
        self,
        outgoing: Sequence[Sequence[torch.Tensor]],
        coming: Sequence[Sequence[Shape]],
        group: dist.ProcessGroup,
    ) -> list[list[torch.Tensor]]:
        """What this rank has for every rank of the group -> what these have for it, of these shapes; by rank."""
        leaving = [sum(tensor.numel() for tensor in tensors) for tensors in outgoing]
        sizes = [[prod(shape) for shape in shapes] for shapes in coming]
        sent, got = (torch.empty(sum(n), dtype=self.dtype, device=self._device) for n in (leaving, map(sum, sizes)))
        if sent.numel():
            torch.cat([tensor.flatten() for tensors in outgoing for tensor in tensors], out=sent)
        dist.all_to_all_single(got, sent, [sum(n) for n in sizes], leaving, group=group)
        self.received += got.nbytes
        parts = zip(got.split([sum(n) for n in sizes]), sizes, coming, strict=True)
        return [
            [view.view(shape) for view, shape in zip(part.split(n), shapes, strict=True)] if shapes else []
            for part, n, shapes in parts
        ]

    def _sent(
        self, parts: Iterable[torch.Tensor], shapes: Sequence[Sequence[int]], source: int, group: dist.ProcessGroup
    ) -> Iterable[torch.Tensor]:
        """From the group's rank `source` to all of it: the parts, of these shapes, in memory of their own."""
        if dist.get_world_size(group) == 1:
            return parts
        sizes = [prod(shape) for shape in shapes]
        flat = torch.empty(sum(sizes), dtype=self.dtype, device=self._device)
        views = [view.view(tuple(shape)) for view, shape in zip(flat.split(sizes), shapes, strict=True)]
        if dist.get_rank(group) == source:
            for view, part in zip(views, parts, strict=True):
                view.copy_(part)
        else:
            self.received += flat.nbytes
        dist.broadcast(flat, dist.get_global_rank(group, source), group=group)
        return views

    def _fill_buckets(self, limit_bytes: int) -> list[tuple[Owner, list[int]]]:
        """Consecutive entries of the table that one owner has."""

        def nbytes(index: int) -> int:
            dealt = self._table[index].of_expert and self._plan.experts_are_dealt
            copies = len(self._dealt_to) if dealt else 0
            return max(self._plan.most_numel(index), copies * self._plan.slices_numel(index)) * self.dtype.itemsize

        owners = self._owners()
        by_owner = groupby(owners, owners.__getitem__)
        return [(owner, bucket) for owner, theirs in by_owner for bucket in in_buckets(theirs, nbytes, limit_bytes)]

    def _owners(self) -> dict[int, Owner]:
        """Table index -> who holds it, in table order. Raises ValueError for a parameter that is nowhere."""
        in_stage = _gather_from(self._ep_group, set(self._tensors))
        in_all = set.intersection(*in_stage)
        expert_rank_of = {
            index: None if index in in_all else rank for rank, indices in enumerate(in_stage) for index in indices
        }
        stages = _gather_from(self._pp_group, expert_rank_of)
        owner_of = {
            index: Owner(stage, rank, self._table[index].of_expert)
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
