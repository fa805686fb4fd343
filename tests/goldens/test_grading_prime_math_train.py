"""Free-form mathematics in training is graded as by the reference."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.grading.prime_math import grade_in_training

CASES = load("grading_prime_math_train.json")["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['ground_truth']}-{case['text']!r}")
def test_an_answer_is_graded_as_by_the_reference(case: dict[str, Any]) -> None:
    verdict = grade_in_training(case["text"], case["ground_truth"])
    assert (verdict.correct, verdict.extracted) == (case["expected"]["score"], case["expected"]["extracted"])
