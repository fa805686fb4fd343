"""A small Llama that really answers, and its questions: what the trainings of these tests start from.

The model is random at first and is then fitted for a few seconds to write `<think>..</think><answer>..</answer>` about
sums. It guesses many sums wrong and breaks its tags now and then, so rewards differ within a group, as they do with a
real model.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

TOKENIZER = Path(__file__).parents[1] / "goldens" / "tokenizers" / "bpe_chat"
FITTING_STEPS = 100
BATCH = 32
THOUGHTS = ("add", "so", "then", "we see", "it is near", "count on")


def question(number: int) -> tuple[str, str]:
    """The text and the reference answer of question `number` (0 <= number < 400)."""
    first, second = divmod(number, 20)
    return f"{first}+{second}=?", str(first + second)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A question in the reference's parquet schema."""
    text, answer = question(number)
    return {
        "prompt": [{"role": "user", "content": text}],
        "data_source": "quickstart/sums",
        "ability": "maths",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": number},
        **changes,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a parquet file."""
    pd.DataFrame(rows).to_parquet(path)
    return path


def save_model(
    folder: Path, *, seed: int = 0, fitted: bool = True, num_hidden_layers: int = 4, experts: int = 0
) -> Path:
    """A Hugging Face folder with the model, its generation settings and its tokenizer. With experts it is a Mixtral."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 128 if experts else 256,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel = (
        MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=experts, num_experts_per_tok=2))
        if experts
        else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    if fitted:
        _fit(model, tokenizer, random.Random(seed))
    model.save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder


def _fit(model: PreTrainedModel, tokenizer: Any, dice: random.Random) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(FITTING_STEPS):
        batch = tokenizer(
            [_conversation(tokenizer, dice) for _ in range(BATCH)],
            padding=True,
            return_tensors="pt",
            add_special_tokens=False,
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)


def _conversation(tokenizer: Any, dice: random.Random) -> str:
    text, answer = question(dice.randrange(400))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    thought = " ".join(dice.choices(THOUGHTS, k=dice.randrange(1, 4)))
    close = "" if dice.random() < 0.1 else "</think>"
    return f"{prompt}<think> {thought} {answer} {close} <answer> {answer} </answer>{tokenizer.eos_token}"
