"""Qwen3-MoE: norms on query and key heads, and experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.fields import flag
from megatron_rlpr.weights.architectures.mixture_of_experts import ExpertNames, expert_feed_forward, expert_shape
from megatron_rlpr.weights.shape import ModelShape

_NAMES = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")
# Otherwise some layers would be dense, a bias be added, or attention not be full.
_INERT: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([],),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
}


def _shape(config: Mapping[str, Any]) -> ModelShape:
    experts = expert_shape(config, "moe_intermediate_size", normalised=flag(config, "norm_topk_prob", default=False))
    # `intermediate_size` is that of dense layers, of which there are none.
    dense = {**config, "intermediate_size": experts.ffn_hidden_size}
    return replace(dense_decoder_shape(dense, qkv_bias=False, inert=_INERT), qk_norm=True, experts=experts)


_FEED_FORWARD = partial(expert_feed_forward, names=_NAMES)
ARCHITECTURE = Architecture("Qwen3MoeForCausalLM", _shape, partial(decoder_parameters, feed_forward=_FEED_FORWARD))
