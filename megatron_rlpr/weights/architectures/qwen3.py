"""Qwen3: Llama's layers with an RMSNorm over every query and key head, and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.architecture import Architecture
from megatron_rlpr.weights.architectures.dense_decoder import dense_decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.fields import flag
from megatron_rlpr.weights.shape import ModelShape

HEAD_DIM = 128
"""transformers' default where no head_dim is written."""


def _shape(config: Mapping[str, Any]) -> ModelShape:
    for switch in ("attention_bias", "use_sliding_window"):
        if flag(config, switch, default=False):
            raise UserError(f"config.json: {switch}=True is not supported for Qwen3ForCausalLM; supported is False")
    return replace(dense_decoder_shape(config, qkv_bias=False, head_dim=HEAD_DIM), qk_norm=True)


ARCHITECTURE = Architecture("Qwen3ForCausalLM", _shape, dense_decoder_parameters)
