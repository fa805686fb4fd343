"""Is a mathematical answer the reference answer: normal forms, tuples and simplification, values (spec section 6.4)."""

from __future__ import annotations

import re
import warnings

import sympy

from megatron_rlpr.grading.math_equal import math_equal
from megatron_rlpr.grading.math_normalize import (
    latex_form,
    latex_roots,
    plain_form,
    whole_number,
    without_thousands_commas,
)
from megatron_rlpr.grading.symbolic import SYMPY_FAILURES, read_expression

_BRACKETS = "()[]"
_FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
_HARD_POWERS = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+")
_MOST_UNKNOWN_LETTERS = 2
_ROUGH_PI = 3.14
_LONGEST_ANSWER = 1000  # characters beyond four times the reference: no spelling of the answer, and slow to normalise


def answers_match(given: str, reference: str) -> bool:
    """True if the given answer is the reference answer, in another spelling perhaps."""
    if len(given) > 4 * len(reference) + _LONGEST_ANSWER:
        return False
    given, reference = latex_roots(given), latex_roots(reference)
    if forms_match(given, reference):
        return True
    if "\\pi" in given or "\\pi" in reference:
        return math_equal(given, reference) or math_equal(given, reference, pi=_ROUGH_PI)
    return math_equal(given, reference)


def forms_match(given: str, reference: str) -> bool:
    """True if the normal forms are equal or the tuples' elements are, fractions as they stand, the rest simplified."""
    if latex_form(given) == latex_form(reference):
        return True
    given, reference = plain_form(given), plain_form(reference)
    if given == reference:
        return True
    if not given or not reference:
        return False
    given_elements, reference_elements = split_tuple(given), split_tuple(reference)
    if len(given_elements) != len(reference_elements):
        return False
    if len(reference_elements) > 1 and (given[0] != reference[0] or given[-1] != reference[-1]):
        return False
    return all(map(_elements_match, given_elements, reference_elements))


def split_tuple(answer: str) -> list[str]:
    """The elements of a tuple or interval, or the answer alone; commas between thousands do not separate."""
    answer = without_thousands_commas(answer)
    if not answer:
        return []
    inner = answer[1:-1]
    bracketed = answer[0] in _BRACKETS and answer[-1] in _BRACKETS
    if inner and bracketed and not any(bracket in inner for bracket in _BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [answer]


def _elements_match(given: str, reference: str) -> bool:
    if _FRACTION.search(reference) and _FRACTION.search(given):
        return given == reference  # a fraction must be reduced
    if _is_integer(reference) != _is_integer(given):
        return False  # an integer must be written as one
    return _difference_vanishes(given, reference)


def _is_integer(text: str) -> bool:
    return whole_number(without_thousands_commas(text)) is not None


def _difference_vanishes(given: str, reference: str) -> bool:
    """True if the difference simplifies to 0; words and hard powers are not tried."""
    difference = f"({reference})-({given})"
    letters = {c for c in difference.replace("sqrt", "").replace("frac", "") if c.isalpha()}
    if len(letters) > _MOST_UNKNOWN_LETTERS or _HARD_POWERS.search(difference):
        return False
    with warnings.catch_warnings(action="ignore"):
        try:
            return bool(sympy.simplify(read_expression(difference, implicit_multiplication=True)) == 0)
        except SYMPY_FAILURES:
            return False
