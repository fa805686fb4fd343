"""Load weights from a Megatron distributed checkpoint into a model of any layout.

Two kinds of folder hold one, both with the weights in `megatron/` and what they belong to in `model_shape.json`: those
that `checkpoint_conversion.hf_to_megatron` makes, and the training checkpoints of a run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.local_parameters import in_bf16, keep_unrounded, local_parameters, tensor_parallel_place
from megatron_rlpr.weights.mapping import Vocab
from megatron_rlpr.weights.parallel_load import load_in_parallel
from megatron_rlpr.weights.shape import ModelShape, shape_of_fields
from megatron_rlpr.weights.stored_boxes import as_boxes

WEIGHTS = "megatron"
SHAPE = "model_shape.json"
_AGAIN = "convert or save the checkpoint again"

_MEGATRON_FILES = ("metadata.json", ".metadata")

# Transformer Engine's FP8 state, pickled, of a layer or (numbered) expert; `actor.delayed_scaling` stores what matters.
_EXTRA_STATE = "_extra_state"


def check_megatron_checkpoint(shape: ModelShape, path: str | Path) -> None:
    """Raise UserError unless the folder is a complete Megatron checkpoint of a model of this shape."""
    stored, wanted = asdict(read_checkpoint_shape(path)), asdict(shape)
    different = [f"{key}={stored[key]!r}, expected {value!r}" for key, value in wanted.items() if stored[key] != value]
    if different:
        fix = "convert the model at hand, or name it"
        raise UserError(f"{path} is a checkpoint of another model: {'; '.join(different)}; {fix}")


def read_checkpoint_shape(path: str | Path) -> ModelShape:
    """What the weights of a checkpoint folder belong to. UserError when the folder is foreign or half-written."""
    folder = Path(path)
    if not folder.is_dir():
        convert = "python -m checkpoint_conversion.hf_to_megatron"
        raise UserError(f"there is no Megatron checkpoint {folder}: make it with {convert}")
    for needed in (SHAPE, *(f"{WEIGHTS}/{name}" for name in _MEGATRON_FILES)):
        if not (folder / needed).is_file():
            raise UserError(f"{folder} is no complete Megatron checkpoint, it holds no {needed}: {_AGAIN}")
    try:
        return shape_of_fields(json.loads((folder / SHAPE).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SHAPE} is not the description of a model ({error}): {_AGAIN}") from error


def chunks_by_key(chunks: Sequence[torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """A rank's model chunks by the names under which Megatron loads and saves their states."""
    return {"model": chunks[0]} if len(chunks) == 1 else {f"model{i}": chunk for i, chunk in enumerate(chunks)}


def weights_state(chunk: torch.nn.Module) -> dict[str, Any]:
    """A chunk's entries of a checkpoint, with the weights as they are; see `stored_in_bf16`."""
    return {name: part for name, part in chunk.sharded_state_dict().items() if _EXTRA_STATE not in name}


def stored_in_bf16(state: dict[str, Any]) -> dict[str, Any]:
    """The same entries, as a checkpoint is read and written: those of FP8 weights in bf16, so that it is the same
    whatever its model computes in, and those of layers and experts as boxes."""
    return {name: as_boxes(replace(part, data=in_bf16(part.data))) for name, part in state.items()}


def load_weights_state(chunk: torch.nn.Module, loaded: dict[str, Any], path: Path) -> None:
    """Take over what `weights_state` was loaded with. ValueError when that is not all of the chunk's weights."""
    faults = chunk.load_state_dict(loaded, strict=False)
    left = [name for name in (*faults.missing_keys, *faults.unexpected_keys) if _EXTRA_STATE not in name]
    if left:
        raise ValueError(f"{path} and the model do not fit: {', '.join(left)}")


@torch.no_grad()
def load_megatron_checkpoint(chunks: Sequence[torch.nn.Module], shape: ModelShape, path: str | Path) -> None:
    """Fill this rank's part of the model, whatever layout the checkpoint was written from. All ranks call it together.

    Values are converted to the model's dtype; vocabulary padding becomes zero. Raises UserError for a folder that is
    foreign, half-written, damaged or of another model.
    """
    check_megatron_checkpoint(shape, path)
    weights = Path(path) / WEIGHTS
    by_key = chunks_by_key(chunks)
    wanted = {key: stored_in_bf16(weights_state(chunk)) for key, chunk in by_key.items()}
    loaded = load_in_parallel(wanted, weights, weights, _AGAIN)
    for key, chunk in by_key.items():
        load_weights_state(chunk, loaded[key], weights)
        for name, parameter in chunk.named_parameters():
            keep_unrounded(parameter, loaded[key][name])
    rank, size = tensor_parallel_place()
    for parameter in local_parameters(chunks, shape):
        if isinstance(parameter.mapping.layout, Vocab):
            # A checkpoint written with less padding leaves the rows beyond it as they were.
            start, stop = parameter.mapping.bounds(parameter.mapping.hf[0], rank, size)
            parameter.tensor[stop - start :].zero_()
