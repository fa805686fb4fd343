"""The steps of the mathematics graders: normal forms, finding the answer, equality by value, tuples."""

from __future__ import annotations

from typing import Any

import pytest
from corrections import correction
from golden_files import load

from megatron_rlpr.grading.answer_text import find_answer
from megatron_rlpr.grading.math_equal import math_equal
from megatron_rlpr.grading.math_grade import split_tuple
from megatron_rlpr.grading.math_normalize import latex_form, plain_form

FILE = "grading_internals.json"
GOLDEN = load(FILE)


def text_in(case: dict[str, Any]) -> str:
    return repr(case["in"])


@pytest.mark.parametrize("case", GOLDEN["normalize_answer"], ids=text_in)
def test_the_latex_form_is_the_references(case: dict[str, Any]) -> None:
    assert latex_form(case["in"]) == case["out"]


@pytest.mark.parametrize("case", GOLDEN["_normalize"], ids=text_in)
def test_the_plain_form_is_the_references(case: dict[str, Any]) -> None:
    assert plain_form(case["in"]) == case["out"]


@pytest.mark.parametrize("case", GOLDEN["match_answer"], ids=text_in)
def test_both_ways_to_find_the_answer_are_the_references(case: dict[str, Any]) -> None:
    # The first entry, whether something marked the answer, is not applicable: no verdict depends on it.
    assert find_answer(case["in"], sentence_first=True) == case["v1"][1]
    assert find_answer(case["in"], sentence_first=False) == case["v2"][1]


def equality(case: dict[str, Any]) -> str:
    prediction, reference = case["prediction"], case["reference"]
    same = prediction.strip().lower() == reference.strip().lower()
    words = set(f"{prediction} {reference}".split()) & {"or", "and", "not", "True", "False"}
    return f"math_equal{'-of-python-words' if words and not same else ''}: {prediction} | {reference}"


@pytest.mark.parametrize("case", GOLDEN["math_equal"], ids=equality)
def test_equality_by_value_is_the_references(case: dict[str, Any]) -> None:
    expected = False if correction(FILE, equality(case)) else case["out"]
    assert math_equal(case["prediction"], case["reference"]) == expected


@pytest.mark.parametrize("case", GOLDEN["split_tuple"], ids=text_in)
def test_tuples_are_split_as_by_the_reference(case: dict[str, Any]) -> None:
    assert split_tuple(case["in"]) == case["out"]
