"""The numbers that define a dense decoder, read from a Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """The rotary scaling of Llama 3.1."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ExpertShape:
    """Experts in place of the feed-forward: count of ffn_hidden_size each, top_k of them for every token.

    normalised: the chosen experts' probabilities are divided by their sum.
    """

    count: int
    top_k: int
    ffn_hidden_size: int
    normalised: bool


@dataclass(frozen=True)
class ModelShape:
    """What the Megatron model is built from.

    qk_norm: RMSNorm over every query and key head before rotation. layer_windows: sliding window of every layer, 0 for
    full attention; empty: all full. query_scale: factor of queries instead of head_dim**-0.5. *_softcap: c in
    c * tanh(x / c), of attention scores and of logits. embedding_scale: factor of the embeddings. post_norms: RMSNorm
    behind attention and feed-forward too, before the residual is added. norm_adds_one: norms multiply by 1 + weight.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    layer_windows: tuple[int, ...] = ()
    query_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float | None = None
    post_norms: bool = False
    norm_adds_one: bool = False
    experts: ExpertShape | None = None

    def window(self, layer: int) -> int:
        """Tokens that layer (from 0, over the whole model) attends to, itself included; 0: all before it."""
        return self.layer_windows[layer] if self.layer_windows else 0


def shape_of_fields(fields: Mapping[str, Any]) -> ModelShape:
    """Inverse of dataclasses.asdict through JSON. Raises TypeError or KeyError for fields that describe no model."""
    scaling, experts = fields["rope_scaling"], fields.get("experts")
    return ModelShape(
        **{
            **fields,
            "rope_scaling": scaling and RopeScaling(**scaling),
            "layer_windows": tuple(fields.get("layer_windows", ())),
            "experts": experts and ExpertShape(**experts),
        }
    )
