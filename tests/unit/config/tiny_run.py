"""The folder in which generated configurations run: a tiny model, its data, and the keys that fit them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
HEADS, KEY_VALUE_HEADS, LAYERS, FEED_FORWARD, POSITIONS, ROWS = 4, 2, 4, 256, 256, 24


@dataclass(frozen=True)
class Place:
    """Where all cases run: its folder is the working directory and holds `model` and two parquet files."""

    tokenizer: Any
    prompts: Any
    shape: Any


def write_files(folder: Path) -> None:
    """The model, training and validation prompts, and a stored step."""
    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS, "num_hidden_layers": LAYERS}
    lengths = {"intermediate_size": FEED_FORWARD, "max_position_embeddings": POSITIONS, "hidden_size": 128}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **lengths, vocab_size=1603, head_dim=32, eos_token_id=1602))
    model.save_pretrained(folder / "model")
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number}+1=?"}],
            "data_source": "unit",
            "ability": "maths",
            "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
            "extra_info": {"index": number},
        }
        for number in range(ROWS)
    ]
    for name in ("train", "val"):
        pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
    (folder / "stored").mkdir()
    (folder / "stored" / "step_000001.parquet").touch()


FITTING: dict[str, Any] = {
    "model.path": "model",
    "data.train_files": ["train.parquet"],
    "data.max_prompt_length": 64,
    "data.val_max_prompt_length": 64,
    "data.max_response_length": 64,
    "rollout.kv_cache_gb": 0.25,
    "actor.dtype": "float32",
}
"""What the tiny model needs; everything else is as --help says."""


def as_arguments(values: dict[str, Any]) -> list[str]:
    """The command line that sets these keys over FITTING."""

    def text(value: Any) -> str:
        return f"[{','.join(value)}]" if isinstance(value, list) else str(value)

    return [f"{name}={text(value)}" for name, value in {**FITTING, **values}.items()]
