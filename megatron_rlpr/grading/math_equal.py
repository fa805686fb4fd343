r"""Are two written mathematical answers equal in value: as numbers, by element or as expressions (spec 6.4, iv).

Lenient on purpose, as the reference is (quirk Q25): case and spaces do not count, a number may be off by 1e-4 and may
be a percentage.
"""

from __future__ import annotations

import math
import re
import warnings
from decimal import Decimal

import sympy

from megatron_rlpr.grading.math_normalize import decimal_number
from megatron_rlpr.grading.symbolic import SYMPY_FAILURES, NotAnExpression, read_expression

RELATIVE_TOLERANCE = Decimal("1e-4")
_SCALES = (Decimal("0.01"), Decimal(1), Decimal(100))  # a percentage of the reference, itself, as a percentage
_MOST_DIGITS = 300
_MOST_CHARACTERS = 1000
_DOLLARS = re.compile(r"\$\d+(\.\d+)?")
_PERCENTAGE = re.compile(r"\d+(\.\d+)?\\?%")
_SYMPY_INTERVAL = re.compile(r"Interval(|\.Ropen|\.Lopen|\.open)\((.*)\)")
_INTERVAL_BRACKETS = {"": "[]", ".Ropen": "[)", ".Lopen": "(]", ".open": "()"}


def math_equal(prediction: str, reference: str, pi: float = math.pi) -> bool:
    r"""True if the two are equal; \pi stands for the value `pi` (answers are often computed with 3.14)."""
    prediction = _without_dressing(prediction, pi)[:_MOST_CHARACTERS]
    reference = _without_dressing(reference, pi)
    same_letters = prediction.strip().lower() == reference.strip().lower()
    if same_letters or prediction.replace(" ", "") == reference.replace(" ", ""):
        return True
    given, wanted = _number(prediction), _number(reference)
    if given is not None and wanted is not None:
        return any(close(wanted * scale, given) for scale in _SCALES)
    if not prediction:
        return False
    prediction, reference = _plain_interval(prediction.strip()), reference.strip()
    if _equal_without_brackets(prediction, reference):
        return True
    by_element = _equal_by_element(prediction, reference)
    return symbolic_equal(prediction, reference) if by_element is None else by_element


def symbolic_equal(first: str, second: str) -> bool:
    """True if the difference of the two expressions simplifies to 0, or both are numbers within the tolerance."""
    left, right = _expression(first), _expression(second)
    if left is None or right is None:
        return False
    carets = "^" in first or "^" in second  # powers written so count by value only, as in the reference
    with warnings.catch_warnings(action="ignore"):
        try:
            if not carets and sympy.simplify(left - right) == 0:
                return True
            return close(_value(left), _value(right))
        except SYMPY_FAILURES:  # not numbers, or beyond sympy
            return False


def close(first: Decimal, second: Decimal) -> bool:
    """True if two numbers, of any size, differ by at most RELATIVE_TOLERANCE of the larger one."""
    return abs(first - second) <= RELATIVE_TOLERANCE * max(abs(first), abs(second))


def _value(expression: sympy.Expr) -> Decimal:
    """The number an expression stands for, of any size. TypeError: it stands for none, or for none that is real."""
    number = sympy.N(expression)
    if not (number.is_Number and number.is_finite):
        raise TypeError(f"{number} is no real number")
    return Decimal(str(number))


def _expression(text: str) -> sympy.Expr | None:
    try:
        return read_expression(text, implicit_multiplication=False)
    except NotAnExpression:
        return None


def _without_dressing(answer: str, pi: float) -> str:
    r"""Without a dollar sign in front, a per cent sign behind or the base of a number (11_2); \pi as a number."""
    if _DOLLARS.match(answer):
        return answer[1:]
    if _PERCENTAGE.fullmatch(answer):
        return answer.rstrip("%").rstrip("\\")
    if "_" in answer:
        written = decimal_number(answer.split("_")[0])
        return str(int(written)) if written is not None and written.adjusted() <= _MOST_DIGITS else answer
    return _with_pi_as_number(answer, pi) if "\\pi" in answer else answer


def _with_pi_as_number(answer: str, pi: float) -> str:
    r"""2\pi -> 6.28...; computed when the whole is arithmetic."""
    product = re.sub(r"(?<=\d)\\pi", f"*{pi}", answer)
    product = product.replace("\\pi", f"1*{pi}")
    expression = None if "^" in product else _expression(product)
    if expression is None or not expression.is_number:
        return product
    try:
        return str(float(expression))
    except (TypeError, ArithmeticError):  # complex or infinite
        return product


def _number(answer: str) -> Decimal | None:
    """The value of a number, commas between digits taken as separators of thousands."""
    return decimal_number(answer.replace("{,}", "") if "{,}" in answer else answer.replace(",", ""))


def _plain_interval(answer: str) -> str:
    """sympy's Interval.Ropen(a, b) as [a, b), and so on."""
    match = _SYMPY_INTERVAL.fullmatch(answer)
    if match is None:
        return answer
    brackets = _INTERVAL_BRACKETS[match.group(1)]
    return brackets[0] + match.group(2) + brackets[1]


def _equal_without_brackets(prediction: str, reference: str) -> bool:
    """Are the two the same text but for their brackets; an interval closed on one side needs both sides alike."""
    square = prediction.startswith("[") and prediction.endswith("]") and not reference.startswith("(")
    round_ = prediction.startswith("(") and prediction.endswith(")") and not reference.startswith("[")
    texts = [prediction, reference]
    if square or round_:
        texts = [text.strip("[]()") for text in texts]
    first, second = (re.sub(r"[{}()]", "", text) for text in texts)
    return first == second


def _equal_by_element(prediction: str, reference: str) -> bool | None:
    """Equality of lists, tuples, intervals and points by element; None when it is for the expressions to decide."""
    bracketed = (
        prediction[:1] in ("(", "[") and prediction[-1:] in (")", "]")
        and prediction[:1] == reference[:1] and prediction[-1:] == reference[-1:]
    )  # fmt: skip
    if bracketed and _all_equal(prediction[1:-1].split(","), reference[1:-1].split(",")):
        return True
    if "," in prediction and "," in reference:
        first, second = ([part.strip() for part in text.split(",")] for text in (prediction, reference))
        if len(first) == len(second):
            return _all_equal(first, second)
    if prediction.startswith("Point") and reference.startswith("(") and reference.endswith(")"):
        inner = prediction[prediction.find("(") + 1 : -1]
        if _all_equal(inner.split(","), reference[1:-1].split(",")):
            return True
    return None


def _all_equal(predictions: list[str], references: list[str]) -> bool:
    return len(predictions) == len(references) and all(map(math_equal, predictions, references))
