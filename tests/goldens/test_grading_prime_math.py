"""Free-form mathematics in validation is graded as by the reference, whose LaTeX parser never works in its own
environment."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.grading.prime_math import grade_in_validation


@pytest.mark.parametrize(
    "case", load("grading_prime_math.json")["cases"], ids=lambda case: f"{case['ground_truth']}-{case['text']!r}"
)
def test_an_answer_is_graded_as_by_the_reference(case: dict[str, Any]) -> None:
    verdict = grade_in_validation(case["text"], case["ground_truth"])
    assert (verdict.correct, verdict.extracted) == (case["expected"]["score"], case["expected"]["extracted"])
