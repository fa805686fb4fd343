"""Read a Hugging Face folder's safetensors into this rank's shards, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from megatron.core import parallel_state
from safetensors import safe_open

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.local_parameters import NamedParameter, all_parameters, local_tensors
from megatron_rlpr.weights.mapping import merge, shard
from megatron_rlpr.weights.shape import ModelShape


class HfTensors:
    """The tensors of a Hugging Face folder by name, one file or sharded with an index. Reads only what is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        index = self._folder / "model.safetensors.index.json"
        if index.is_file():
            names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._file_of = {name: self._folder / file for name, file in names.items()}
        else:
            self._file_of = {}
            for file in sorted(self._folder.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    self._file_of.update(dict.fromkeys(tensors.keys(), file))
        if not self._file_of:
            raise UserError(f"{self._folder}: no *.safetensors there; expected a Hugging Face model folder")

    def names(self) -> set[str]:
        """All stored names."""
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """One tensor. Raises UserError when the folder lacks it or its file cannot be read."""
        file = self._file_of.get(name)
        if file is None:
            raise UserError(f"{self._folder}: tensor {name} is missing; the folder is incomplete or of another architecture")
        try:
            with safe_open(file, framework="pt") as tensors:
                tensor: torch.Tensor = tensors.get_tensor(name)
                return tensor
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{file}: cannot read {name}: {error}; fetch the model again") from error


def load_hf_weights(model: torch.nn.Module, shape: ModelShape, folder: str | Path) -> None:
    """Fill this rank's part of the model from a Hugging Face folder.

    Every tensor of the folder must have a place in the model and the other way round; a wrong shape is refused. Values
    are converted to the model's dtype.
    """
    source = HfTensors(folder)
    tensors = local_tensors(model, shape)
    _refuse_unknown(source, shape, folder)
    with torch.no_grad():
        for parameter, target in tensors.items():
            target.copy_(_local_value(source, parameter, target, shape, folder))
        # The last stage of a pipeline holds its own copy of a tied embedding.
        if shape.tied_embeddings and model.post_process and not model.pre_process:
            embedding = next(p for p in all_parameters(shape) if p.mapping.kind == "vocab")
            target = model.output_layer.weight
            target.copy_(_local_value(source, embedding, target, shape, folder))


def _local_value(
    source: HfTensors, parameter: NamedParameter, target: torch.Tensor, shape: ModelShape, folder: str | Path
) -> torch.Tensor:
    full = merge(parameter.mapping, [source.read(name) for name in parameter.hf_names], shape)
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    part = shard(parameter.mapping, full, rank, size)
    if part.shape != target.shape:
        raise UserError(
            f"{folder}: {' + '.join(parameter.hf_names)} make a shard of shape {list(part.shape)}, "
            f"the model of config.json needs {list(target.shape)}"
        )
    return part


def _refuse_unknown(source: HfTensors, shape: ModelShape, folder: str | Path) -> None:
    known = {name for p in all_parameters(shape) for name in p.hf_names}
    known |= {"lm_head.weight"} if shape.tied_embeddings else set()
    unknown = sorted(n for n in source.names() - known if not n.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise UserError(f"{folder}: {len(unknown)} tensors have no place in {shape.architecture}, e.g. {unknown[0]}")
