"""Llama 2 and 3.x (LlamaForCausalLM): no biases, rotary scaling of Llama 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.dense import dense_parameters as parameters
from megatron_rlpr.weights.shape import ModelShape, dense_shape

__all__ = ["parameters", "shape"]


def shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a Llama from its config.json."""
    if config.get("attention_bias"):
        raise UserError("config.json: attention_bias=true of LlamaForCausalLM is not supported (it also biases the output projection)")
    return dense_shape(config, qkv_bias=False)
