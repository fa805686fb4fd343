"""Mixtral: Llama's attention, and experts whose chosen probabilities are divided by their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.architecture import Architecture
from megatron_rlpr.weights.architectures.dense_decoder import decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.mixture_of_experts import ExpertNames, expert_feed_forward, expert_shape
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape

# transformers' default where no rope_theta is written.
_ROPE_THETA = 1e6
_NAMES = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")


def _shape(config: Mapping[str, Any]) -> ModelShape:
    if config.get("sliding_window") is not None:
        window = config["sliding_window"]
        raise UserError(
            f"config.json: sliding_window={window!r} is not supported for MixtralForCausalLM; supported is null"
        )
    if config.get("router_jitter_noise"):
        noise = config["router_jitter_noise"]
        raise UserError(
            f"config.json: router_jitter_noise={noise!r} is not supported for MixtralForCausalLM; supported is 0.0"
        )
    theta = _ROPE_THETA if config.get("rope_theta") is None else config["rope_theta"]
    experts = expert_shape(config, "intermediate_size", normalised=True)
    return replace(dense_decoder_shape({**config, "rope_theta": theta}, qkv_bias=False), experts=experts)


def _parameters(shape: ModelShape) -> tuple[ParamMapping, ...]:
    return decoder_parameters(shape, partial(expert_feed_forward, names=_NAMES))


ARCHITECTURE = Architecture("MixtralForCausalLM", _shape, _parameters)
