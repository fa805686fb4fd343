"""Gemma 2: soft-capped scores and logits, norms around both blocks, scaled embeddings, every other layer windowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import fields
from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape
from megatron_rlpr.weights.shape import ModelShape

_NAME = "Gemma2ForCausalLM"
_ACTIVATION = "gelu_pytorch_tanh"
_INERT: fields.Inert = {
    **dict.fromkeys(("hidden_act", "attn_logit_softcapping", "final_logit_softcapping", "layer_types")),
    "attention_bias": (False,),
}

# transformers' defaults where a field is not written; null switches a soft cap off.
_DEFAULTS = {
    "hidden_activation": _ACTIVATION,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


def _shape(config: Mapping[str, Any]) -> ModelShape:
    written = {**_DEFAULTS, **config}
    # transformers computes with hidden_activation; hidden_act stands beside it in published files.
    if (found := written["hidden_activation"]) != _ACTIVATION:
        raise UserError(
            f"config.json: hidden_activation={found!r} is not supported for {_NAME}; supported is {_ACTIVATION!r}"
        )
    shape = dense_decoder_shape(written, qkv_bias=False, inert=_INERT, tied=True)
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(shape.num_layers)]
    return replace(
        shape,
        activation="gelu_tanh",
        layer_windows=fields.layer_windows(written, written.get("layer_types") or alternating),
        query_scale=fields.positive_number(written, "query_pre_attn_scalar") ** -0.5,
        attention_softcap=_softcap(written, "attn_logit_softcapping"),
        final_softcap=_softcap(written, "final_logit_softcapping"),
        embedding_scale=shape.hidden_size**0.5,
        post_norms=True,
        norm_adds_one=True,
    )


def _softcap(config: Mapping[str, Any], field: str) -> float | None:
    return None if config[field] is None else fields.positive_number(config, field)


ARCHITECTURE = Architecture(_NAME, _shape, decoder_parameters)
