"""Tiny random HF folders that vLLM can run: a tokenizer of the goldens and a two-layer model with heads of 32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
VOCAB_SIZE = 1603
EOS = 1602  # <|im_end|>
SECOND_EOS = 1600  # <|endoftext|>
EOS_IDS = (SECOND_EOS, *range(100, 160))
"""End-of-sequence ids of generation_config.json: many, so that random models end some responses; EOS is the tokenizer's
alone."""


def save_llama(folder: Path, seed: int, tied: bool = True) -> Path:
    """A random Llama; a wide initialisation makes its distribution peaked enough for greedy decoding to be clear."""
    torch.manual_seed(seed)
    config = LlamaConfig(**_sizes(), num_key_value_heads=2, head_dim=32, tie_word_embeddings=tied)
    return _save(LlamaForCausalLM(config), folder)


def save_two_llamas(folder: Path) -> Path:
    """Models a and b of one shape with different weights; only one token ends their responses."""
    for seed, name in enumerate("ab"):
        settings = save_llama(folder / name, seed) / "generation_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": SECOND_EOS}))
    return folder


def save_qwen2(folder: Path, seed: int) -> Path:
    """A random Qwen2 with one key/value head, untied, with biases that matter."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**_sizes(), num_key_value_heads=1, tie_word_embeddings=False))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return _save(model, folder)


def save_mixtral(folder: Path, seed: int) -> Path:
    """A random Mixtral with three experts, two for every token."""
    torch.manual_seed(seed)
    config = MixtralConfig(**_sizes(), num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2)
    return _save(MixtralForCausalLM(config), folder)


def save_qwen3(folder: Path, seed: int) -> Path:
    """A random Qwen3: norms over heads."""
    torch.manual_seed(seed)
    return _save(Qwen3ForCausalLM(Qwen3Config(**_sizes(), num_key_value_heads=1, head_dim=32)), folder)


def save_mistral(folder: Path, seed: int) -> Path:
    """A random Mistral whose window is shorter than the prompts of the tests."""
    torch.manual_seed(seed)
    return _save(
        MistralForCausalLM(MistralConfig(**_sizes(), num_key_value_heads=1, head_dim=32, sliding_window=48)), folder
    )


def save_gemma2(folder: Path, seed: int) -> Path:
    """A random Gemma 2 with soft caps that matter and a window shorter than the prompts of the tests."""
    torch.manual_seed(seed)
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
    config = Gemma2Config(
        **_sizes(), **caps, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=48
    )
    return _save(Gemma2ForCausalLM(config), folder)


def _sizes() -> dict:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": SECOND_EOS,
        "pad_token_id": SECOND_EOS,
    }


def _save(model: PreTrainedModel, folder: Path) -> Path:
    model.generation_config.eos_token_id = list(EOS_IDS)
    model.save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder
