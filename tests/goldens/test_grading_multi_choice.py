"""Multiple choice is graded as by the reference."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.grading.multiple_choice import grade_multiple_choice

GOLDEN = load("grading_multi_choice.json")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['ground_truth']}-{case['text']!r}")
def test_a_choice_is_graded_as_by_the_reference(case: dict[str, Any]) -> None:
    verdict = grade_multiple_choice(case["text"], case["ground_truth"], case["options"], GOLDEN["prompt_str"])
    assert (verdict.correct, verdict.extracted) == (bool(case["expected"]["score"]), case["expected"]["extracted"])
