"""Mistral: Llama's layers, every one with the same sliding window where the config has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_rlpr.weights.architectures import fields
from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.shape import ModelShape


def _shape(config: Mapping[str, Any]) -> ModelShape:
    shape = dense_decoder_shape(config, qkv_bias=False)
    # 4096 is transformers' default where the field is not written; null switches the window off.
    written = {"sliding_window": 4096, **config}
    if written["sliding_window"] is None:
        return shape
    return replace(shape, layer_windows=fields.layer_windows(written, ["sliding_attention"] * shape.num_layers))


ARCHITECTURE = Architecture("MistralForCausalLM", _shape, decoder_parameters)
