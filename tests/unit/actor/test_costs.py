"""What a token costs is what the weights it meets cost."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from megatron_rlpr.actor.costs import cost_model
from megatron_rlpr.weights.architectures import model_shape, parameter_table

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 3}


@pytest.mark.parametrize(
    ("config", "share_of_experts"),
    [({"architectures": ["LlamaForCausalLM"]}, 1.0), ({"architectures": ["MixtralForCausalLM"], **EXPERTS}, 3 / 8)],
)
def test_a_token_pays_for_the_matrices_of_all_layers_and_for_the_experts_it_goes_to(
    config: dict[str, Any], share_of_experts: float
) -> None:
    shape = model_shape({**SIZES, **config})
    matrices = {
        mapping.megatron[0]: prod(mapping.shard_shape(1))
        for mapping in parameter_table(shape)
        if mapping.megatron[0].startswith("decoder.layers") and len(mapping.shard_shape(1)) == 2
    }
    met = sum(size * (share_of_experts if ".experts." in name else 1) for name, size in matrices.items())
    assert cost_model(shape).linear_flops_per_token == pytest.approx(2 * met)


def test_the_head_costs_its_matrix_once_a_row() -> None:
    shape = model_shape({**SIZES, "architectures": ["LlamaForCausalLM"]})
    assert cost_model(shape).head_flops_per_row == 2 * 48 * 131
