"""Llama 2 and 3 (and what shares their class, such as SmolLM2): no biases, tied or untied, Llama 3.1 rotary scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.architecture import Architecture
from megatron_rlpr.weights.architectures.dense_decoder import dense_decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.fields import flag
from megatron_rlpr.weights.shape import ModelShape


def _shape(config: Mapping[str, Any]) -> ModelShape:
    # Llama's attention_bias puts a bias on the output projection too, which the Megatron layer has not.
    if flag(config, "attention_bias", default=False):
        raise UserError("config.json: attention_bias=True is not supported for LlamaForCausalLM; supported is False")
    if config.get("sliding_window") is not None:
        window = config["sliding_window"]
        raise UserError(
            f"config.json: sliding_window={window!r} is not supported for LlamaForCausalLM; supported is null"
        )
    return dense_decoder_shape(config, qkv_bias=False)


ARCHITECTURE = Architecture("LlamaForCausalLM", _shape, dense_decoder_parameters)
