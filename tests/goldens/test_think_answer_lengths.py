"""Lengths of reasoning and answer, counted in tokens, summed up as the reference does."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load, to_float
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.reward.lengths import length_metrics, think_answer_lengths

GOLDEN = load("think_answer_lengths.json")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["format_mode"])
def test_length_metrics(case: dict[str, Any]) -> None:
    lengths = think_answer_lengths(golden_tokenizer(GOLDEN["tokenizer"]), case["texts"], case["format_mode"])
    assert length_metrics(lengths) == pytest.approx({name: to_float(value) for name, value in case["expected"].items()})
