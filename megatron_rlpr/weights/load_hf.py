"""Read a Hugging Face folder's safetensors into this rank's shards, parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import hf_manifest
from megatron_rlpr.weights.hf_folder import EMBEDDING, OUTPUT_HEAD, HfFolder
from megatron_rlpr.weights.local_parameters import fill, local_parameters, tensor_parallel_place
from megatron_rlpr.weights.shape import ModelShape

_COMPARED_ROWS = 16384


def open_hf_weights(shape: ModelShape, folder: str | Path) -> HfFolder:
    """The folder's tensors, after checking that they are exactly the model's. Raises UserError.

    With tied embeddings a stored output head is allowed when it is the embedding again; transformers would compute with
    another one.
    """
    source = HfFolder(folder)
    blocks = shape.num_layers * (shape.experts.count if shape.experts else 1)
    if blocks > len(source.stored):  # before all their names are listed
        sizes = f"{shape.num_layers} layers" + (f" of {shape.experts.count} experts" if shape.experts else "")
        raise UserError(
            f"{source.path}: config.json describes {sizes}, but only {len(source.stored)} tensors are there"
        )
    source.check(hf_manifest(shape), frozenset({OUTPUT_HEAD}) if shape.tied_embeddings else frozenset())
    if shape.tied_embeddings and OUTPUT_HEAD in source.stored and not _is_again(source, OUTPUT_HEAD, EMBEDDING):
        fix = f"set tie_word_embeddings to false to use it, or remove it and keep {EMBEDDING}"
        stored = f"{source.stored[OUTPUT_HEAD].file}: config.json ties the embeddings, but {OUTPUT_HEAD}"
        raise UserError(f"{stored} is another matrix than {EMBEDDING}: {fix}")
    return source


def _is_again(source: HfFolder, name: str, other: str) -> bool:
    """Whether two matrices of the folder are the same, compared by pieces."""
    shape = source.stored[other].shape
    if source.stored[name].shape != shape:
        return False
    pieces = [(start, min(start + _COMPARED_ROWS, shape[0])) for start in range(0, shape[0], _COMPARED_ROWS)]
    return all(torch.equal(source.read(name, 0, *piece), source.read(other, 0, *piece)) for piece in pieces)


def load_hf_weights(chunks: Sequence[torch.nn.Module], shape: ModelShape, folder: str | Path) -> None:
    """Fill this rank's part of the model from a Hugging Face folder, converted to the model's dtype.

    Only this rank's slices are read; vocabulary padding becomes zero. Raises UserError when a tensor is missing, has no
    place in the model, has a wrong shape, or holds values that are no numbers.
    """
    source = open_hf_weights(shape, folder)
    with torch.no_grad():
        for parameter in local_parameters(chunks, shape):
            place = tensor_parallel_place(parameter.mapping.of_expert)
            fill(parameter.tensor, parameter.mapping.shard(source.read, *place))
