"""The files of a Hugging Face folder that belong to the model beside its weights: configuration, tokenizer,
templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
)


def companion_files(folder: Path) -> list[Path]:
    """Those of them that the folder holds, by name."""
    return sorted({path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()})


def copy_companions(source: Path, target: Path) -> None:
    """Copy them into a folder, which is made when it is missing."""
    target.mkdir(parents=True, exist_ok=True)
    for path in companion_files(source):
        shutil.copyfile(path, target / path.name)


def record_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Make a folder's config.json name the dtype of its weights (transformers reads it to choose how to load them)."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(field) != name:
        file.write_text(json.dumps({**config, field: name}, indent=2) + "\n", encoding="utf-8")
