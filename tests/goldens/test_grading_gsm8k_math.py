"""GSM8K's marked number and MATH's string equivalence."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.grading.exact import grade_gsm8k
from megatron_rlpr.grading.hendrycks import grade_hendrycks

GOLDEN = load("grading_gsm8k_math.json")


@pytest.mark.parametrize("case", GOLDEN["gsm8k"], ids=lambda case: case["text"])
def test_gsm8k_is_graded_as_by_the_reference(case: dict[str, Any]) -> None:
    assert grade_gsm8k(case["text"], case["gt"]).correct == bool(case["expected"])


@pytest.mark.parametrize("case", GOLDEN["math"], ids=lambda case: case["text"])
def test_math_is_graded_as_by_the_reference(case: dict[str, Any]) -> None:
    assert grade_hendrycks(case["text"], case["gt"]).correct == bool(case["expected"])
