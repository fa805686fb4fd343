"""Write a Megatron checkpoint (torch_dist) parameter by parameter, from weights that are nowhere in memory as a whole.

Megatron and torch plan the checkpoint from tensors without storage; only when torch comes to write a piece is its
parameter made. Pieces are written in table order, so that a parameter is made once and a file holds neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, is_main_replica
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    mcore_to_pyt_state_dict,
)
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from checkpoint_conversion.model_outline import ModelOutline, OutlinedParameter
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.buckets import in_buckets
from megatron_rlpr.weights.plan_check import planned_quickly

Values = Callable[[OutlinedParameter], torch.Tensor]
"""The values of a whole Megatron parameter; asked for once each, in table order."""

_FILE_BYTES = 64 * 2**20


def save_streamed(outline: ModelOutline, values: Values, folder: Path) -> None:
    """Write the checkpoint that Megatron would write of the model with these values, into an existing empty folder.

    A UserError of values is raised as it is; torch wraps it.
    """
    try:
        dist_checkpointing.save({"model": outline.state}, str(folder), sharded_strategy=_StreamedSave(outline, values))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise (cause if isinstance(cause, UserError) else error) from None


class _StreamedSave(TorchDistSaveShardedStrategy):
    """Megatron's torch_dist format, planned and written by torch in this process, not by Megatron's forked writers."""

    def __init__(self, outline: ModelOutline, values: Values) -> None:
        super().__init__("torch_dist", 1)
        self._outline = outline
        self._values = values

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        by_key = defaultdict(list)
        for part in nested_values(sharded_state_dict):
            if is_main_replica(part.replica_id):
                by_key[part.unique_key if isinstance(part, ShardedObject) else part.key].append(part)
        writer = _FilesOfLayers(str(checkpoint_dir), thread_count=1)
        with planned_quickly():
            checkpoint.save(
                mcore_to_pyt_state_dict(by_key), storage_writer=writer, planner=_Planner(self._outline, self._values)
            )


class _Planner(MCoreSavePlanner):
    """Resolves a piece by making its parameter, of which it keeps one."""

    def __init__(self, outline: ModelOutline, values: Values) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._values = values
        self._parameters = outline.parameters
        self._owner = {
            _place(piece.key, piece.global_offset): number
            for number, parameter in enumerate(outline.parameters)
            for piece in parameter.pieces(parameter.outline)
        }
        self._made = -1
        self._pieces: list[ShardedTensor] = []

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.plan = replace(plan, items=sorted(plan.items, key=self._position))
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        assert write_item.tensor_data is not None
        number = self._position(write_item)
        if number != self._made:
            self._pieces = []  # before the next is made
            parameter = self._parameters[number]
            self._pieces = parameter.pieces(self._values(parameter))
            self._made = number
        wanted = _of_item(write_item)
        (piece,) = (p for p in self._pieces if _place(p.key, p.global_offset) == wanted)
        # Stacked layers have leading dimensions of size 1.
        return piece.data.reshape(write_item.tensor_data.chunk.sizes)

    def _position(self, item: WriteItem) -> int:
        return -1 if item.type == WriteItemType.BYTE_IO else self._owner[_of_item(item)]


def _place(key: str, offset: Any) -> tuple[str, tuple[int, ...]]:
    """Where a piece lies in the checkpoint."""
    return key, tuple(offset)


def _of_item(item: WriteItem) -> tuple[str, tuple[int, ...]]:
    assert item.tensor_data is not None
    return _place(item.index.fqn, item.tensor_data.chunk.offsets)


class _FilesOfLayers(FileSystemWriter):
    """Begins a new file after _FILE_BYTES: torch lets go of the tensors of a file only when the file is written."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        for number, items in enumerate(in_buckets(plan.items, _nbytes, _FILE_BYTES)):
            prefix = replace(plan.storage_data, prefix=f"{plan.storage_data.prefix}{number}_")
            results += super().write_data(replace(plan, items=items, storage_data=prefix), planner).wait()
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written


def _nbytes(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    return int(item.tensor_data.chunk.sizes.numel()) * item.tensor_data.properties.dtype.itemsize
