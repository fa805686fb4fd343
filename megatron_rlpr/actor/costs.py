"""What a model's sequences cost to compute."""

from __future__ import annotations

from megatron_rlpr.packing import CostModel
from megatron_rlpr.weights.shape import ModelShape


def cost_model(shape: ModelShape) -> CostModel:
    """The forward FLOPs: two per weight and token, two per score and two per value element. The MLP is gated.

    With experts, a token pays for the router and the experts it goes to.
    """
    experts, heads = shape.experts, 2 * shape.num_attention_heads + 2 * shape.num_query_groups
    mlp_rows = 3 * experts.ffn_hidden_size * experts.top_k + experts.count if experts else 3 * shape.ffn_hidden_size
    return CostModel(
        linear_flops_per_token=2.0 * shape.num_layers * shape.hidden_size * (shape.head_dim * heads + mlp_rows),
        attention_flops_per_pair=4.0 * shape.num_layers * shape.num_attention_heads * shape.head_dim,
        head_flops_per_row=2.0 * shape.hidden_size * shape.vocab_size,
    )
