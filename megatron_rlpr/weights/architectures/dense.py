"""The parameters that Llama-like decoders share."""

from __future__ import annotations

from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.mapping import ParamMapping

_LAYER = "model.layers.{layer}."
_MEGATRON = "decoder.layers.{layer}."


def dense_parameters(shape: ModelShape) -> tuple[ParamMapping, ...]:
    """Every parameter of the model, in forward order. A tied output layer is not listed: it is the embedding."""
    query_key_value = [_LAYER + f"self_attn.{part}_proj." for part in "qkv"]
    layer = [
        ParamMapping(
            _MEGATRON + "input_layernorm.weight",
            (_LAYER + "input_layernorm.weight",),
            "replicated",
            _MEGATRON + "self_attention.linear_qkv.layer_norm_weight",
        ),
        ParamMapping(_MEGATRON + "self_attention.linear_qkv.weight", tuple(p + "weight" for p in query_key_value), "qkv"),
        ParamMapping(_MEGATRON + "self_attention.linear_proj.weight", (_LAYER + "self_attn.o_proj.weight",), "row"),
        ParamMapping(
            _MEGATRON + "pre_mlp_layernorm.weight",
            (_LAYER + "post_attention_layernorm.weight",),
            "replicated",
            _MEGATRON + "mlp.linear_fc1.layer_norm_weight",
        ),
        ParamMapping(
            _MEGATRON + "mlp.linear_fc1.weight", (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"), "gate_up"
        ),
        ParamMapping(_MEGATRON + "mlp.linear_fc2.weight", (_LAYER + "mlp.down_proj.weight",), "row"),
    ]
    if shape.qkv_bias:
        layer.append(ParamMapping(_MEGATRON + "self_attention.linear_qkv.bias", tuple(p + "bias" for p in query_key_value), "qkv"))
    ends = [ParamMapping("decoder.final_layernorm.weight", ("model.norm.weight",), "replicated")]
    if not shape.tied_embeddings:
        ends.append(ParamMapping("output_layer.weight", ("lm_head.weight",), "vocab"))
    return (ParamMapping("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab"), *layer, *ends)
