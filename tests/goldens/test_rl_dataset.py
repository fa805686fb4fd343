"""Rows become the prompts that the reference's data set yields; its padded tensors follow from ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from golden_files import load
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.data.dataset import load_prompts
from megatron_rlpr.types import UserError

GOLDEN = load("rl_dataset.json")
TENSORS = {"input_ids", "attention_mask", "position_ids", "raw_prompt_ids", "raw_prompt", "index"}


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pd.DataFrame(GOLDEN["rows"]).to_parquet(path)
    return path


def row_index(row: dict[str, Any]) -> int:
    """extra_info.index of a row, 0 when it has none."""
    return int((row.get("extra_info") or {}).get("index") or 0)


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: f"{run['tokenizer']}-{run['max_prompt_length']}")
def test_prompts_of_a_run(run: dict[str, Any], parquet: Path) -> None:
    limit = run["max_prompt_length"]
    loaded = load_prompts([parquet], golden_tokenizer(run["tokenizer"]), limit)
    items = {item["index"]: item for item in run["items"]}
    rows = {row_index(row) for row in GOLDEN["rows"]}

    assert len(loaded) + loaded.dropped == len(GOLDEN["rows"])
    assert [row_index(prompt.extra) for prompt in loaded.prompts] == [index for index in items if index in rows]
    if set(items) <= rows:
        assert len(loaded) == run["kept"]
    for prompt in loaded.prompts:
        item = items[row_index(prompt.extra)]
        assert list(prompt.token_ids) == item["valid_ids"] == item["raw_prompt_ids"]
        assert limit - len(prompt.token_ids) == item["left_pad"]
        assert [0, len(prompt.token_ids) - 1] == item["position_first_last_valid"]
        assert [limit] == item["shape"]
        assert item["pad_positions_all_zero"]
        assert set(item["keys"]) - TENSORS <= set(prompt.extra) | {"data_source"}


def test_a_prompt_over_the_limit_is_refused_in_evaluation(parquet: Path) -> None:
    assert GOLDEN["filter_prompts_False_with_long_prompt"] == "AssertionError"
    tokenizer = golden_tokenizer(GOLDEN["runs"][0]["tokenizer"])
    longest = max(len(prompt.token_ids) for prompt in load_prompts([parquet], tokenizer, 10**6).prompts)
    with pytest.raises(UserError, match=r"rows\.parquet, row \d+: the prompt has"):
        load_prompts([parquet], tokenizer, longest - 1, overlong="refuse")
