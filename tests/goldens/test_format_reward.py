"""The format score of every recorded text, by the mode's tags (prob) and by what the prompt asks for (rule)."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load, to_float

from megatron_rlpr.grading.format import format_score, rule_format_score
from megatron_rlpr.types import UserError

GOLDEN = load("format_reward.json")
CASES = [
    pytest.param(case, variant, id=f"{number}-{variant}")
    for number, case in enumerate(GOLDEN["cases"])
    for variant in case
    if variant != "text"
]


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_format_score_of_a_text(case: dict[str, Any], variant: str) -> None:
    kind, _, rest = variant.partition(".")
    if kind == "prob":
        score = format_score(case["text"], rest)
    else:
        prompt_kind, _, mode = rest.rpartition(".")
        score = rule_format_score(case["text"], GOLDEN["prompt_strings"][prompt_kind], mode)
    assert score == to_float(case[variant])


def test_an_unknown_mode_is_refused() -> None:
    assert GOLDEN["prob_unknown_mode_error"]
    with pytest.raises(UserError, match="format_mode"):
        format_score("<think>a</think><answer>b</answer>", "R2")
