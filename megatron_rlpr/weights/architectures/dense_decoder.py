"""What a family is, and the decoder they share: RMSNorm, grouped-query attention with rotary positions, gated MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from megatron_rlpr.weights.architectures import fields
from megatron_rlpr.weights.hf_folder import EMBEDDING, OUTPUT_HEAD
from megatron_rlpr.weights.mapping import GateUp, HfTensor, ParamMapping, Qkv, Replicated, Row, Vocab
from megatron_rlpr.weights.shape import ModelShape

FeedForward = Callable[[ModelShape, str, str], list[ParamMapping]]
"""(shape, the layer's name in Megatron, its name in Hugging Face) -> the weights behind the second norm."""


@dataclass(frozen=True)
class Architecture:
    """A model family.

    name: class name in `architectures` of config.json. shape: reads a config.json; raises UserError for fields it does
    not implement. parameters: every parameter in both worlds, in export order.
    """

    name: str
    shape: Callable[[Mapping[str, Any]], ModelShape]
    parameters: Callable[[ModelShape], tuple[ParamMapping, ...]]


def dense_decoder_shape(
    config: Mapping[str, Any],
    qkv_bias: bool,
    inert: fields.Inert = MappingProxyType({}),
    head_dim: int | None = None,
    tied: bool = False,
) -> ModelShape:
    """Read the fields all decoders share; refuse those that would change the numbers.

    inert: as in `fields.refuse_what_changes_numbers`. head_dim, tied: transformers' defaults of the family.
    """
    fields.refuse_what_changes_numbers(config, inert)
    theta, scaling = fields.rope(config)
    return ModelShape(
        architecture=fields.architecture_name(config),
        num_layers=fields.positive_integer(config, "num_hidden_layers"),
        hidden_size=fields.positive_integer(config, "hidden_size"),
        num_attention_heads=fields.positive_integer(config, "num_attention_heads"),
        num_query_groups=fields.query_groups(config),
        head_dim=fields.head_dim(config, head_dim),
        ffn_hidden_size=fields.positive_integer(config, "intermediate_size"),
        vocab_size=fields.positive_integer(config, "vocab_size"),
        max_position_embeddings=fields.positive_integer(config, "max_position_embeddings"),
        norm_eps=fields.positive_number(config, "rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=fields.flag(config, "tie_word_embeddings", default=tied),
        qkv_bias=qkv_bias,
    )


def gated_feed_forward(shape: ModelShape, megatron: str, hf: str) -> list[ParamMapping]:
    """The feed-forward of every dense decoder."""
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    gate_up = tuple(HfTensor(f"{hf}.mlp.{x}_proj.weight", (ffn, hidden)) for x in ("gate", "up"))
    down = HfTensor(f"{hf}.mlp.down_proj.weight", (hidden, ffn))
    table = [
        ParamMapping((f"{megatron}.mlp.linear_fc1.weight",), gate_up, GateUp()),
        ParamMapping((f"{megatron}.mlp.linear_fc2.weight",), (down,), Row()),
    ]
    if shape.post_norms:
        norm = HfTensor(f"{hf}.post_feedforward_layernorm.weight", (hidden,))
        table.append(ParamMapping((f"{megatron}.mlp.linear_fc2.post_layernorm.weight",), (norm,), Replicated()))
    return table


def decoder_parameters(shape: ModelShape, feed_forward: FeedForward = gated_feed_forward) -> tuple[ParamMapping, ...]:
    """Names, shapes and layouts in both worlds, first layer to last."""
    hidden, vocab = shape.hidden_size, shape.vocab_size
    embedding = HfTensor(EMBEDDING, (vocab, hidden))
    table = [ParamMapping(("embedding.word_embeddings.weight",), (embedding,), Vocab())]
    for layer in range(shape.num_layers):
        megatron, hf = f"decoder.layers.{layer}", f"model.layers.{layer}"
        table += [*_attention(shape, megatron, hf), *feed_forward(shape, megatron, hf)]
    norm = HfTensor("model.norm.weight", (hidden,))
    table.append(ParamMapping(("decoder.final_layernorm.weight",), (norm,), Replicated()))
    # With tied embeddings the last pipeline stage holds a copy of the embedding under the output layer's name.
    head = embedding if shape.tied_embeddings else HfTensor(OUTPUT_HEAD, (vocab, hidden))
    table.append(ParamMapping(("output_layer.weight",), (head,), Vocab(), is_copy=shape.tied_embeddings))
    return tuple(table)


def _attention(shape: ModelShape, megatron: str, hf: str) -> list[ParamMapping]:
    hidden = shape.hidden_size
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    qkv_rows = (("q", query), ("k", key_value), ("v", key_value))
    attention = f"{megatron}.self_attention"

    def norm(local: str, name: str, *fused: str, size: int = hidden) -> ParamMapping:
        names = (f"{megatron}.{local}.weight", *fused)
        return ParamMapping(names, (HfTensor(f"{hf}.{name}.weight", (size,)),), Replicated())

    def qkv(kind: str, *columns: int) -> ParamMapping:
        tensors = tuple(HfTensor(f"{hf}.self_attn.{x}_proj.{kind}", (rows, *columns)) for x, rows in qkv_rows)
        return ParamMapping((f"{attention}.linear_qkv.{kind}",), tensors, Qkv(shape.head_dim))

    # Transformer Engine fuses a norm with the linear layer behind it, but not with a router.
    fused_with_mlp = () if shape.experts else (f"{megatron}.mlp.linear_fc1.layer_norm_weight",)
    output = HfTensor(f"{hf}.self_attn.o_proj.weight", (hidden, query))
    before_mlp = "pre_feedforward_layernorm" if shape.post_norms else "post_attention_layernorm"
    head_norms = [norm(f"self_attention.{x}_layernorm", f"self_attn.{x}_norm", size=shape.head_dim) for x in ("q", "k")]
    return [
        norm("input_layernorm", "input_layernorm", f"{attention}.linear_qkv.layer_norm_weight"),
        qkv("weight", hidden),
        *([qkv("bias")] if shape.qkv_bias else []),
        ParamMapping((f"{attention}.linear_proj.weight",), (output,), Row()),
        *(head_norms if shape.qk_norm else []),
        *([norm("self_attention.linear_proj.post_layernorm", "post_attention_layernorm")] if shape.post_norms else []),
        norm("pre_mlp_layernorm", before_mlp, *fused_with_mlp),
    ]
