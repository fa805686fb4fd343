"""What a model's sequences cost to compute."""

from __future__ import annotations

from megatron_rlpr.packing import CostModel
from megatron_rlpr.weights.shape import ModelShape


def cost_model(shape: ModelShape) -> CostModel:
    """The forward FLOPs of a model of this shape; of its experts, those that a token goes to."""
    experts = shape.experts
    return CostModel.of_transformer(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=experts.ffn_hidden_size if experts else shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        num_experts=experts.count if experts else 0,
        experts_per_token=experts.top_k if experts else 1,
    )
