"""Layers and experts in a checkpoint as boxes of a tensor, of which a rank names its own alone.

Megatron stores the layers of a model as one tensor and a layer's experts as one: dimensions of size 1 in front of every
weight. It gives torch such a weight as a piece of a regular grid, with all other pieces of it, which torch compares
pair by pair where they begin at the same row: 24,064 of one tensor of Qwen3-235B-A22B, on every rank, at every save and
load. Boxes of any size name no others, and the files are the same. That those of all ranks fill the tensor is checked
where their plans come together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

Entry: TypeAlias = ShardedTensor | ShardedTensorFactory


def as_boxes(entry: Entry) -> Entry:
    """The entry of a weight, whose pieces are stored as boxes where they have dimensions in front of their own.

    What is loaded with it has the weight's shape, and is read into the same memory as without.
    """
    if isinstance(entry, ShardedTensor) and not entry.prepend_axis_num:
        return entry
    outline, dimensions = entry.without_data(), entry.data.ndim

    def build(key: str, data: torch.Tensor, replica_id: Any, _: Any) -> list[ShardedTensor]:
        whole = replace(outline, key=key, data=data, replica_id=replica_id)
        return [_box(piece) for piece in pieces(whole)]

    def merge(loaded: list[torch.Tensor]) -> torch.Tensor:
        own = [box.view(box.shape[box.ndim - dimensions :]) for box in loaded]
        if isinstance(outline, ShardedTensorFactory):
            merged: torch.Tensor = outline.merge_fn(own)
            return merged
        return own[0]

    return ShardedTensorFactory(entry.key, entry.data, build, merge, entry.replica_id)


def pieces(entry: Entry) -> Iterator[ShardedTensor]:
    """The tensors that a checkpoint makes of a weight: of a gate and an up projection in one, two."""
    yield from nested_values({0: entry.build()}) if isinstance(entry, ShardedTensorFactory) else [entry]


def _box(piece: ShardedTensor) -> ShardedTensor:
    shape = (*[1] * piece.prepend_axis_num, *piece.local_shape)
    return replace(piece, data=piece.data.view(shape), local_shape=shape, prepend_axis_num=0, axis_fragmentations=None)
