"""The judge's reply, the question it is asked and the text of an option are read as by the reference."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.evaluation.judge_prompts import boxed_letter, recover_question
from megatron_rlpr.grading.multiple_choice import option_text

GOLDEN = load("judge_helpers.json")


@pytest.mark.parametrize("case", GOLDEN["judge_extract_option"], ids=lambda case: case["text_lowercased"])
def test_the_last_boxed_letter_is_the_judges_word(case: dict[str, Any]) -> None:
    assert boxed_letter(case["text_lowercased"]) == case["expected"]


@pytest.mark.parametrize("case", GOLDEN["raw_question"], ids=lambda case: repr(case["prompt"]))
def test_the_question_is_recovered_from_the_prompt(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(ValueError, match="no user turn"):
            recover_question(case["prompt"])
    else:
        assert recover_question(case["prompt"]) == case["expected"]


@pytest.mark.parametrize("case", GOLDEN["option_text"], ids=lambda case: f"{case['gt']}-{case['prompt']!r}")
def test_the_text_of_an_option_is_read_from_the_prompt(case: dict[str, Any]) -> None:
    assert (
        str(option_text(case["prompt"], case["gt"])) == case["expected"]
    )  # the reference writes 'None' where there is none
