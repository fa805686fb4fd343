"""Qwen2 and Qwen2.5 (Qwen2ForCausalLM): biases on query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_rlpr.weights.architectures.dense import dense_parameters as parameters
from megatron_rlpr.weights.shape import ModelShape, dense_shape

__all__ = ["parameters", "shape"]


def shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a Qwen2 from its config.json."""
    return dense_shape(config, qkv_bias=True)
