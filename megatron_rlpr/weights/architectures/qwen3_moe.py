"""Qwen3-MoE: norms on query and key heads, and experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.architecture import Architecture
from megatron_rlpr.weights.architectures.dense_decoder import decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.architectures.fields import flag
from megatron_rlpr.weights.architectures.mixture_of_experts import ExpertNames, expert_feed_forward, expert_shape
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape

_NAMES = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")
# Fields under which some layers would be dense, a bias be added, or attention not be full; with the values under which
# not.
_INERT: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (None, 1),
    "mlp_only_layers": (None, []),
    "attention_bias": (None, False),
    "use_sliding_window": (None, False),
}


def _shape(config: Mapping[str, Any]) -> ModelShape:
    for field, inert in _INERT.items():
        if config.get(field) not in inert:
            raise UserError(
                f"config.json: {field}={config[field]!r} is not supported for Qwen3MoeForCausalLM; supported is "
                f"{inert[1]}"
            )
    experts = expert_shape(config, "moe_intermediate_size", normalised=flag(config, "norm_topk_prob", default=False))
    # `intermediate_size` is that of dense layers, of which there are none.
    shape = dense_decoder_shape({**config, "intermediate_size": experts.ffn_hidden_size}, qkv_bias=False)
    return replace(shape, qk_norm=True, experts=experts)


def _parameters(shape: ModelShape) -> tuple[ParamMapping, ...]:
    return decoder_parameters(shape, partial(expert_feed_forward, names=_NAMES))


ARCHITECTURE = Architecture("Qwen3MoeForCausalLM", _shape, _parameters)
