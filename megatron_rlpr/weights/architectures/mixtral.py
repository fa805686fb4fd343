"""Mixtral: Llama's attention, and experts whose chosen probabilities are divided by their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.mixture_of_experts import ExpertNames, expert_feed_forward, expert_shape
from megatron_rlpr.weights.shape import ModelShape

_NAMES = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")
_INERT = {"sliding_window": (), "router_jitter_noise": (0.0, 0)}


def _shape(config: Mapping[str, Any]) -> ModelShape:
    # 1e6 is transformers' default where no rope_theta is written.
    theta = 1e6 if config.get("rope_theta") is None else config["rope_theta"]
    shape = dense_decoder_shape({**config, "rope_theta": theta}, qkv_bias=False, inert=_INERT)
    return replace(shape, experts=expert_shape(config, "intermediate_size", normalised=True))


_FEED_FORWARD = partial(expert_feed_forward, names=_NAMES)
ARCHITECTURE = Architecture("MixtralForCausalLM", _shape, partial(decoder_parameters, feed_forward=_FEED_FORWARD))
