"""Read a Hugging Face folder's safetensors into this rank's shards, parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_rlpr.weights.architectures import hf_manifest
from megatron_rlpr.weights.hf_folder import OUTPUT_HEAD, HfFolder
from megatron_rlpr.weights.local_parameters import local_parameters, tensor_parallel_place
from megatron_rlpr.weights.shape import ModelShape


def open_hf_weights(shape: ModelShape, folder: str | Path) -> HfFolder:
    """The folder's tensors, after checking that they are exactly the model's. Raises UserError.

    With tied embeddings a stored output head is allowed and not used, as in transformers.
    """
    source = HfFolder(folder)
    source.check(hf_manifest(shape), frozenset({OUTPUT_HEAD}) if shape.tied_embeddings else frozenset())
    return source


def load_hf_weights(chunks: Sequence[torch.nn.Module], shape: ModelShape, folder: str | Path) -> None:
    """Fill this rank's part of the model from a Hugging Face folder, converted to the model's dtype.

    Only this rank's slices are read; vocabulary padding becomes zero. Raises UserError when a tensor is missing, has no
    place in the model, or has a wrong shape; nothing is loaded then.
    """
    source = open_hf_weights(shape, folder)
    rank, size = tensor_parallel_place()
    with torch.no_grad():
        for parameter in local_parameters(chunks, shape):
            parameter.tensor.copy_(parameter.mapping.shard(source.read, rank, size))
