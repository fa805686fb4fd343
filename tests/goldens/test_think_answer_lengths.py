"""Lengths of reasoning and answer, counted in tokens, summed up as the reference does."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load, to_float
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.reward.metrics import length_metrics
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoredGroup

GOLDEN = load("think_answer_lengths.json")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["format_mode"])
def test_length_metrics(case: dict[str, Any]) -> None:
    responses = tuple(Response((), text, (), "stop", 0) for text in case["texts"])
    group = RolloutGroup(Prompt(0, (), (), "", ""), responses)
    metrics = length_metrics(golden_tokenizer(GOLDEN["tokenizer"]), [ScoredGroup(group, (), ())], case["format_mode"])
    assert metrics == pytest.approx({name: to_float(value) for name, value in case["expected"].items()})
