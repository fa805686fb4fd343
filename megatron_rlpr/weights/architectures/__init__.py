"""One module per architecture: its shape from config.json, and its parameters in both worlds."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import llama, qwen2
from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.mapping import ParamMapping

SUPPORTED: dict[str, ModuleType] = {"LlamaForCausalLM": llama, "Qwen2ForCausalLM": qwen2}


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape of the model a Hugging Face configuration describes. Raises UserError when it is not supported."""
    names = config.get("architectures") or [None]
    if names[0] not in SUPPORTED:
        raise UserError(f"config.json: architecture {names[0]} is not supported; supported are {', '.join(SUPPORTED)}")
    shape: ModelShape = SUPPORTED[names[0]].shape(config)
    return shape


def parameters(shape: ModelShape) -> tuple[ParamMapping, ...]:
    """Every parameter of the model in both worlds, in forward order."""
    table: tuple[ParamMapping, ...] = SUPPORTED[shape.architecture].parameters(shape)
    return table
