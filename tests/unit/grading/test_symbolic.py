"""Expressions are read, never executed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.grading.math_equal import math_equal
from megatron_rlpr.grading.math_grade import answers_match
from megatron_rlpr.grading.symbolic import NotAnExpression, read_expression

x, y = sympy.symbols("x y")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2", sympy.Rational(1, 2)),
        ("-x**2", -(x**2)),
        ("2^-3", sympy.Rational(1, 8)),
        ("2**3**2", sympy.Integer(512)),
        ("2xy^2", 2 * x * y**2),
        ("3 sqrt(2)", 3 * sympy.sqrt(2)),
        ("sqrt 2x", sympy.sqrt(2 * x)),
        ("x(x+1)", x * (x + 1)),
        ("1/2x", x / 2),
        ("5!", sympy.Integer(120)),
        ("2pi", 2 * sympy.pi),
        ("alpha", sympy.Symbol("alpha")),
    ],
)
def test_written_mathematics_is_read_as_it_is_meant(text: str, value: sympy.Expr) -> None:
    assert sympy.simplify(read_expression(text, implicit_multiplication=True) - value) == 0


def test_without_implicit_multiplication_a_name_is_one_variable() -> None:
    assert read_expression("xy+f(x)", implicit_multiplication=False) == sympy.Symbol("xy") + sympy.Function("f")(x)
    with pytest.raises(NotAnExpression):
        read_expression("2x", implicit_multiplication=False)


HOSTILE = [
    "__import__('os').system('touch executed')",
    "open('executed','w')",
    "().__class__.__bases__[0]",
    "(lambda: 1)()",
    "eval('1')",
    "x.subs",
    "[1 for i in x]",
    "'a'*9",
    "9**9**9**9",
    "9^9^9^9",
    "99999999!",
    "1e999999999",
    "2**100000",
    "(1/3)**99999",
    "(" * 500 + "1" + ")" * 500,
    "sqrt(" * 500 + "1" + ")" * 500,
    "1" * 2000,
    "x if x else y",
    "S",
    "",
    "1+",
    "(1",
]


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_code_and_towers_are_refused(text: str, implicit: bool) -> None:
    with pytest.raises(NotAnExpression):
        read_expression(text, implicit_multiplication=implicit)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_a_hostile_answer_is_wrong_and_leaves_no_trace(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for answer in (
        text,
        f"\\pi*{text}",
        f"[{text}]",
        f"\\begin{{pmatrix}}{text}\\end{{pmatrix}}",
        f"\\input{{{text}}}",
    ):
        assert not answers_match(answer, "17.25")
        assert not math_equal("17.25", answer)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None)
@given(st.text(alphabet="x12.()+-*/^! sqrtπE_e,", max_size=15), st.booleans())
def test_any_text_is_an_expression_or_refused(text: str, implicit: bool) -> None:
    with contextlib.suppress(NotAnExpression):
        assert isinstance(read_expression(text, implicit_multiplication=implicit), sympy.Basic)


@settings(deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999))
def test_arithmetic_is_exact(a: int, b: int, c: int) -> None:
    assert read_expression(f"({a})/{b}-({c})*{b}", implicit_multiplication=False) == sympy.Rational(a, b) - c * b
