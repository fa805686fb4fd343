"""Qwen3: Llama's layers with an RMSNorm over every query and key head, and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.shape import ModelShape

_INERT = {"attention_bias": (False,), "use_sliding_window": (False,)}


def _shape(config: Mapping[str, Any]) -> ModelShape:
    # 128 is transformers' default where no head_dim is written.
    return replace(dense_decoder_shape(config, qkv_bias=False, inert=_INERT, head_dim=128), qk_norm=True)


ARCHITECTURE = Architecture("Qwen3ForCausalLM", _shape, decoder_parameters)
