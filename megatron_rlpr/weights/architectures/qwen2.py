"""Qwen2 and Qwen2.5: Llama's layers with biases on the query, key and value projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.architecture import Architecture
from megatron_rlpr.weights.architectures.dense_decoder import dense_decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.fields import flag
from megatron_rlpr.weights.shape import ModelShape


def _shape(config: Mapping[str, Any]) -> ModelShape:
    # Published configs carry sliding_window with use_sliding_window=false: only the switch puts it to use.
    if flag(config, "use_sliding_window", default=False):
        raise UserError(
            "config.json: use_sliding_window=True is not supported for Qwen2ForCausalLM; supported is False"
        )
    return dense_decoder_shape(config, qkv_bias=True)


ARCHITECTURE = Architecture("Qwen2ForCausalLM", _shape, dense_decoder_parameters)
