"""The model's weights as a stream of full tensors with Hugging Face names, the same on every rank.

Parameters travel in buckets of bounded size. Per bucket: the owning stage's tensor-parallel ranks gather their shards,
the stage sends them to the other stages, every rank puts the full tensors together. Nothing but the bucket in flight
exists twice; with one rank the stream yields views of the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rlpr.weights.local_parameters import NamedParameter, all_parameters, local_tensors
from megatron_rlpr.weights.mapping import split, unshard
from megatron_rlpr.weights.shape import ModelShape


@dataclass(frozen=True)
class _Stored:
    """Where a parameter lives: its pipeline stage and the shape of one tensor-parallel shard."""

    stage: int
    shard_shape: tuple[int, ...]


class WeightExporter:
    """Exports one model again and again. All ranks make it together and iterate together."""

    def __init__(self, model: torch.nn.Module, shape: ModelShape, bucket_mb: int) -> None:
        self._shape = shape
        self._tensors = local_tensors(model, shape)
        self._order = list(all_parameters(shape))
        self._dtype = next(iter(self._tensors.values())).dtype
        self._device = next(iter(self._tensors.values())).device
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self._tensor_size = parallel_state.get_tensor_model_parallel_world_size()
        self._pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self._pipeline_size = parallel_state.get_pipeline_model_parallel_world_size()
        self._stage = parallel_state.get_pipeline_model_parallel_rank()
        self._stored = self._locate()
        self._buckets = self._fill_buckets(bucket_mb * 2**20)

    def manifest(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> full shape of everything the stream will hold, in order, without moving any weight."""
        names: dict[str, tuple[int, ...]] = {}
        for parameter in self._order:
            shard_shape = self._stored[parameter].shard_shape
            parts = [torch.empty(shard_shape, device="meta")] * self._tensor_size
            full = unshard(parameter.mapping, parts)
            pieces = split(parameter.mapping, full, self._shape)
            names.update((name, tuple(piece.shape)) for name, piece in zip(parameter.hf_names, pieces, strict=True))
        return names

    def stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full tensor) in the manifest's order. Tensors may be views of the live weights."""
        for bucket in self._buckets:
            gathered = self._gather(bucket)
            first = 0
            for parameter in bucket:
                shard_shape = self._stored[parameter].shard_shape
                count = torch.Size(shard_shape).numel()
                parts = [flat[first : first + count].view(shard_shape) for flat in gathered] if gathered else [self._tensors[parameter].detach()]
                first += count
                pieces = split(parameter.mapping, unshard(parameter.mapping, parts), self._shape)
                yield from zip(parameter.hf_names, pieces, strict=True)

    def _gather(self, bucket: list[NamedParameter]) -> list[torch.Tensor]:
        """Every tensor-parallel rank's flat shards of a bucket; [] when this rank holds the full tensors itself."""
        if self._tensor_size == 1 and self._pipeline_size == 1:
            return []
        stage = self._stored[bucket[0]].stage
        if self._stage == stage:
            mine = torch.cat([self._tensors[p].detach().flatten() for p in bucket])
            parts = [mine]
            if self._tensor_size > 1:
                parts = [torch.empty_like(mine) for _ in range(self._tensor_size)]
                dist.all_gather(parts, mine, group=self._tensor_group)
        else:
            count = sum(torch.Size(self._stored[p].shard_shape).numel() for p in bucket)
            parts = [torch.empty(count, dtype=self._dtype, device=self._device) for _ in range(self._tensor_size)]
        if self._pipeline_size > 1:
            source = dist.get_process_group_ranks(self._pipeline_group)[stage]
            for part in parts:
                dist.broadcast(part, source, group=self._pipeline_group)
        return parts

    def _locate(self) -> dict[NamedParameter, _Stored]:
        """Ask every stage what it holds. Raises KeyError when a parameter is nowhere."""
        mine = [(self._order.index(p), tuple(t.shape)) for p, t in self._tensors.items()]
        held: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(self._pipeline_size)]
        dist.all_gather_object(held, mine, group=self._pipeline_group)
        stored = {self._order[i]: _Stored(stage, shape) for stage, items in enumerate(held) for i, shape in items}
        missing = [p.hf_names[0] for p in self._order if p not in stored]
        if missing:
            raise KeyError(f"no stage holds {missing}")
        return stored

    def _fill_buckets(self, limit_bytes: int) -> list[list[NamedParameter]]:
        """Consecutive parameters of one stage, up to the limit; a larger parameter is a bucket of its own."""
        buckets: list[list[NamedParameter]] = []
        size = 0
        for parameter in self._order:
            stored = self._stored[parameter]
            count = torch.Size(stored.shard_shape).numel() * self._dtype.itemsize * self._tensor_size
            if not buckets or size + count > limit_bytes or self._stored[buckets[-1][0]].stage != stored.stage:
                buckets.append([])
                size = 0
            buckets[-1].append(parameter)
            size += count
        return buckets
