"""Which parameters of the table this rank's part of the model holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor

from megatron_rlpr.weights.architectures import parameter_table
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape

_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")
# An expert's number stands in front of its parameters, or behind them where one module holds all experts.
_EXPERT = re.compile(r"(.+\.mlp\.experts\.(?:local_experts\.|linear_fc\d\.weight))(\d+)(.*)")


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this rank. index: its place in the architecture's table, the same on every rank."""

    index: int
    mapping: ParamMapping
    tensor: torch.nn.Parameter


def in_bf16(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter as a plain tensor without gradient: itself, or what its FP8 bytes stand for, in bf16."""
    return dequantize_fp8_tensor(tensor).detach() if is_float8tensor(tensor) else tensor.detach()


def fill(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Set a parameter. One that is stored in FP8 keeps the values before rounding, too, until they are taken."""
    parameter.copy_(values)
    keep_unrounded(parameter, values)


def keep_unrounded(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Keep the values that a parameter was just set to, if it is stored in FP8."""
    if is_float8tensor(parameter):
        parameter.unrounded = values.detach().cpu()  # type: ignore[attr-defined]


def take_unrounded(parameter: torch.Tensor) -> torch.Tensor | None:
    """The kept values, once."""
    values: torch.Tensor | None = vars(parameter).pop("unrounded", None)
    return values


def tensor_parallel_place(of_expert: bool = False) -> tuple[int, int]:
    """This rank among those that cut its layers, or its experts, and how many they are."""
    if of_expert:
        return (
            parallel_state.get_expert_tensor_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_world_size(),
        )
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()


def local_parameters(chunks: Sequence[torch.nn.Module], shape: ModelShape) -> list[LocalParameter]:
    """This rank's parameters in table order.

    chunks: bare GPTModels, local or Transformer Engine spec. Raises ValueError for a parameter the table does not know
    or whose shape is not the one the table and the tensor-parallel size give.
    """
    place = {
        name: (index, mapping) for index, mapping in enumerate(parameter_table(shape)) for name in mapping.megatron
    }
    found = []
    for chunk, local_name, tensor in ((c, name, tensor) for c in chunks for name, tensor in c.named_parameters()):
        name = _global_name(local_name, chunk, shape)
        if name not in place:
            raise ValueError(f"the Megatron parameter {name} has no place in the table of {shape.architecture}")
        index, mapping = place[name]
        _, tp_size = tensor_parallel_place(mapping.of_expert)
        expected = mapping.shard_shape(tp_size)
        if tuple(tensor.shape) != expected:
            sizes = f"{list(tensor.shape)}, the table gives {list(expected)} at tensor-parallel size {tp_size}"
            raise ValueError(f"{name} has shape {sizes}")
        found.append(LocalParameter(index, mapping, tensor))
    return sorted(found, key=lambda p: p.index)


def _global_name(name: str, chunk: torch.nn.Module, shape: ModelShape) -> str:
    """A chunk numbers its layers from 0, and an expert-parallel rank its experts, of which ranks hold equally many."""
    if match := _LAYER.fullmatch(name):
        before, layer, after = match.groups()
        # `layer_number` counts from 1 over the whole model.
        name = f"{before}{chunk.decoder.layers[int(layer)].layer_number - 1}{after}"
    if shape.experts is not None and (match := _EXPERT.fullmatch(name)):
        before, expert, after = match.groups()
        per_rank = shape.experts.count // parallel_state.get_expert_model_parallel_world_size()
        name = f"{before}{parallel_state.get_expert_model_parallel_rank() * per_rank + int(expert)}{after}"
    return name
