"""The three small tokenizers that the golden cases were made with."""

from __future__ import annotations

from functools import cache
from typing import Any

from golden_files import GOLDENS

from megatron_rlpr.data.tokenizer import load_tokenizer


@cache
def golden_tokenizer(name: str) -> Any:
    """A tokenizer of the golden folder, loaded as a run would load it."""
    return load_tokenizer(str(GOLDENS / "tokenizers" / name))
