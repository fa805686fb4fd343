"""Read a Hugging Face folder's safetensors into this rank's shards, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core import parallel_state

from megatron_rlpr.weights.architectures import parameter_table
from megatron_rlpr.weights.hf_folder import OUTPUT_HEAD, HfFolder
from megatron_rlpr.weights.local_parameters import local_parameters
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape

BytesLoaded = Callable[[int], None]
"""Called with the number of bytes of each parameter that was filled."""


def hf_manifest(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> full shape of every tensor of the model, in export order; tied embeddings once."""
    return {t.name: t.shape for mapping in parameter_table(shape) if not mapping.is_copy for t in mapping.hf}


def open_hf_weights(shape: ModelShape, folder: str | Path) -> HfFolder:
    """The folder's tensors, after checking that they are exactly the model's. Raises UserError.

    With tied embeddings a stored output head is allowed and not used, as in transformers.
    """
    source = HfFolder(folder)
    source.check(hf_manifest(shape), frozenset({OUTPUT_HEAD}) if shape.tied_embeddings else frozenset())
    return source


def load_hf_weights(
    model: torch.nn.Module, shape: ModelShape, folder: str | Path, on_loaded: BytesLoaded | None = None
) -> None:
    """Fill this rank's part of the model from a Hugging Face folder, converted to the model's dtype.

    Only this rank's slices are read; vocabulary padding becomes zero. Raises UserError when a tensor is missing, has no
    place in the model, or has a wrong shape; nothing is loaded then.
    """
    source = open_hf_weights(shape, folder)
    with torch.no_grad():
        for parameter in local_parameters(model, shape):
            parameter.tensor.copy_(_shard(source, parameter.mapping))
            if on_loaded is not None:
                on_loaded(parameter.tensor.nbytes)


def _shard(source: HfFolder, mapping: ParamMapping) -> torch.Tensor:
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    dim = mapping.layout.cut_dim
    if dim is None:
        return mapping.merge([source.read(t.name) for t in mapping.hf])
    pieces = [source.read(t.name, dim, *mapping.bounds(t, rank, size)) for t in mapping.hf]
    return mapping.layout.fuse([mapping.pad(piece, t, size) for piece, t in zip(pieces, mapping.hf, strict=True)])
