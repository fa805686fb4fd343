"""The three small tokenizers of the goldens: byte-level BPE (pad = eos, and a chat one) and a sentence-piece-like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_rlpr.data.tokenizer import load_tokenizer

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenizers"


@pytest.fixture(scope="session", params=["bpe_base", "bpe_chat", "sp_gemma_like"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(str(TOKENIZERS / request.param))


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZERS / "bpe_chat"))
