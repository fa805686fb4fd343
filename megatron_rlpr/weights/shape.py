"""The numbers that define a dense decoder, read from a Hugging Face configuration."""

from __future__ import annotations

import json
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
    """config.json of a Hugging Face folder. Raises UserError when folder or file is missing or no JSON object."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: name a Hugging Face folder with config.json, the tokenizer and *.safetensors")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no config.json: it is no Hugging Face model folder")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): fetch the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} must hold a JSON object, found a {type(config).__name__}")
    return config
