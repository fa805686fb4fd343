"""A configuration that passes all checks, to be changed, and what is refused of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_rlpr.config.checks import check
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError

HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "head_dim": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "vocab_size": 1001,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
}

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}

Run = Callable[..., Config]


def refusal(config: Config, world_size: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        check(config, world_size)
    message = str(caught.value)
    assert "\n" not in message
    return message
