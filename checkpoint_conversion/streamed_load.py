"""Read a Megatron checkpoint as a stream of Hugging Face tensors, a few parameters in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from checkpoint_conversion.model_outline import ModelOutline, OutlinedParameter
from megatron_rlpr.system.dtypes import all_finite
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.buckets import in_buckets
from megatron_rlpr.weights.damage import damage_named

BUCKET_BYTES = 32 * 2**20
"""Consecutive parameters are loaded together up to this size; a larger one alone."""


def load_streamed(
    outline: ModelOutline, weights: Path, on_loaded: Callable[[int], None] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full contiguous tensor) of all the model has, in its table's order, in the outline's dtype.

    weights: folder of a checkpoint that was written in any layout. on_loaded: called with the bytes of every parameter
    that has been passed on. Raises UserError when the checkpoint is damaged, or holds values that are no numbers.
    """
    for bucket in in_buckets(outline.parameters, lambda parameter: parameter.nbytes, BUCKET_BYTES):
        loaded = _load(bucket, weights)
        for parameter in bucket:
            names = (tensor.name for tensor in parameter.mapping.hf)
            whole = loaded.pop(parameter.name)
            if not all_finite(whole):
                raise UserError(f"{weights}: {parameter.name} holds NaN or infinite values: take an earlier checkpoint")
            yield from zip(names, parameter.mapping.join([whole]), strict=True)
            if on_loaded is not None:
                on_loaded(parameter.nbytes)


def _load(bucket: list[OutlinedParameter], weights: Path) -> dict[str, torch.Tensor]:
    held = {p.name: p.holding(torch.empty_like(p.outline, device="cpu")) for p in bucket}
    wanted = {name: part.build() if isinstance(part, ShardedTensorFactory) else part for name, part in held.items()}
    wanted = dict_list_map_outplace(_of_any_layers, wanted)
    with damage_named(weights, "convert or save the checkpoint again"):
        # Megatron would object that the other layers are loaded by nobody.
        loaded = dist_checkpointing.load({"model": wanted}, str(weights), validate_access_integrity=False)["model"]
    return {name: _whole(part, loaded.pop(name)) for name, part in held.items()}


def _whole(part: ShardedTensor | ShardedTensorFactory, loaded: Any) -> torch.Tensor:
    """The parameter of one or several loaded pieces, without the dimensions of stacked layers."""
    pieces = dict_list_map_outplace(lambda piece: piece.flatten(0, piece.dim() - part.data.dim()), loaded)
    whole: torch.Tensor = part.merge_fn(pieces) if isinstance(part, ShardedTensorFactory) else pieces
    return whole


def _of_any_layers(stored: ShardedTensor) -> ShardedTensor:
    """The same place, with dimensions of size 1 in front instead of a count of them.

    Megatron stacks layers. With the count, it demands all layers of the stack at once.
    """
    stacked = stored.data.reshape((1,) * stored.prepend_axis_num + tuple(stored.local_shape))
    return replace(stored, data=stacked, local_shape=tuple(stacked.shape), prepend_axis_num=0)
