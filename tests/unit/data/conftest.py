"""A small chat tokenizer and a way to write data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from megatron_rlpr.data.tokenizer import load_tokenizer

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenizers"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZERS / "bpe_chat"))


@pytest.fixture(scope="session")
def gemma_like_tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZERS / "sp_gemma_like"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name, rows): a parquet file with these rows."""

    def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        pd.DataFrame(rows).to_parquet(path)
        return path

    return write_rows
