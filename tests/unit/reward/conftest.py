"""The three small tokenizers of the goldens: byte-level BPE (pad = eos, and a chat one) and a sentence-piece-like
one."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_records import TOKENIZERS

from megatron_rlpr.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session", params=["bpe_base", "bpe_chat", "sp_gemma_like"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(str(TOKENIZERS / request.param))


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZERS / "bpe_chat"))
