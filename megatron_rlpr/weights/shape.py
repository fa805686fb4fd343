"""The numbers that define a dense decoder, read from a Hugging Face configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rlpr.types import UserError


@dataclass(frozen=True)
class RopeScaling:
    """The rotary scaling of Llama 3.1."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelShape:
    """What the Megatron model is built from."""

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


def read_hf_config(path: str | Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder. Raises UserError when it is missing or no JSON object."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: no config.json there; expected a Hugging Face model folder")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a JSON object")
    return config


def dense_shape(config: Mapping[str, Any], *, qkv_bias: bool) -> ModelShape:
    """The shape of a Llama-like decoder. Raises UserError for a field that would change the numbers and is not supported."""
    name = config["architectures"][0]
    _refuse(config, name)
    theta, scaling = _rope(config, name)
    heads = int(config["num_attention_heads"])
    return ModelShape(
        architecture=name,
        num_layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        num_attention_heads=heads,
        num_query_groups=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        ffn_hidden_size=int(config["intermediate_size"]),
        vocab_size=int(config["vocab_size"]),
        max_position_embeddings=int(config["max_position_embeddings"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
    )


def _refuse(config: Mapping[str, Any], name: str) -> None:
    """Fields with a value that the Megatron model would not honour."""
    refused = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(config.get("mlp_bias")),
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "partial_rotary_factor": float(config.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantization_config": config.get("quantization_config") is not None,
        "attention_dropout": bool(config.get("attention_dropout")),
    }
    for field, unsupported in refused.items():
        if unsupported:
            raise UserError(f"config.json: {field}={config.get(field)!r} of {name} is not supported; it would change the model's numbers")


def _rope(config: Mapping[str, Any], name: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"config.json: rotary scaling {kind!r} of {name} is not supported; supported are 'default' and 'llama3'")
    return theta, RopeScaling(
        float(parameters["factor"]),
        float(parameters["low_freq_factor"]),
        float(parameters["high_freq_factor"]),
        int(parameters["original_max_position_embeddings"]),
    )
