"""Equality of mathematical answers beyond the golden cases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.grading.answer_text import find_answer, last_section, without_sections
from megatron_rlpr.grading.math_grade import answers_match
from megatron_rlpr.grading.prime_math import grade_in_training, grade_in_validation


@pytest.mark.parametrize(
    ("given_answer", "reference"),
    [
        (r"\frac{x}{2}", "x/2"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\sqrt{12}", r"2\sqrt{3}"),
        ("√10", r"\sqrt{10}"),
        (r"(0, \infty)", r"\left(0,\infty\right)"),
        ("1,5,3", "1, 5, 3"),
        (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}"),
        ("12 inches", "12"),
        ("xy^2", "y^2x"),
        (r"3\frac{1}{2}", "3.5"),
        ("3√(x+1)", r"3\sqrt{x+1}"),
        ("3√(1+x)", r"3\sqrt{x+1}"),
        ("√((x+1)(x-1))", r"\sqrt{x^2-1}"),
        ("√(2√(x)+1)", r"\sqrt{1+2\sqrt{x}}"),
        ("1" + 400 * "0", "1" + 400 * "0"),
        ("1e400", "1" + 400 * "0"),
        ("6.626e-34", "6.6263e-34"),
        ("50%", "0.5"),
        ("1{,}234{,}567", "1,234,567"),
    ],
)
def test_spellings_of_one_answer_match(given_answer: str, reference: str) -> None:
    assert answers_match(given_answer, reference)


@pytest.mark.parametrize(
    ("given_answer", "reference"),
    [
        ("[0,1)", "(0,1)"),
        ("x+1", "x+2"),
        ("5 or 6", "5"),
        ("", "5"),
        ("(1,2)", "(2,1)"),
        ("True", "1"),
        ("2^3", "1"),
        ("1" + 400 * "0", "2" + 400 * "0"),
        ("1e400", "1e500"),
        ("10**400", "10**500"),
        ("(1e400,2)", "(1e500,2)"),
        ("exp(1000)", "exp(1001)"),
        ("1e-400", "0"),
        ("1e-400", "1e-500"),
        ("6.6e-34", "1.6e-19"),
        ("1e999999999", "1"),
        ("1e99999", "1e99998"),
        ("10^{10^{10}}", "10^{10^{11}}"),
        ("9**9**9**9", "1"),
        ("√(x", "√x"),
        ("√(x+2)", "√(x+1)"),
    ],
)
def test_other_answers_do_not(given_answer: str, reference: str) -> None:
    assert not answers_match(given_answer, reference)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_an_answer_matches_itself(text: str) -> None:
    assert answers_match(text, text)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=20))
def test_any_response_gets_a_verdict(response: str, reference: str) -> None:
    for grade in (grade_in_validation, grade_in_training):
        assert isinstance(grade(response, reference).extracted, str)


def test_in_training_reasoning_does_not_count_and_in_validation_it_does() -> None:
    response = r"<think> maybe \boxed{7} </think> no answer"
    assert grade_in_validation(response, "7").correct
    assert not grade_in_training(response, "7").correct


def test_a_longer_number_is_not_the_reference_that_begins_it() -> None:
    assert not grade_in_validation("ANSWER: 175", "17").correct
    assert not grade_in_validation("The correct answer is 17.5", "17").correct
    assert grade_in_validation("The correct answer is 17. Done", "17").correct


def test_a_second_turn_of_the_conversation_is_not_read_in_validation() -> None:
    assert not grade_in_validation("<answer>1</answer>user\n<answer>2</answer>", "2").correct


def test_the_boxed_answer_goes_before_the_tagged_one() -> None:
    assert find_answer(r"<answer>1</answer> \boxed{2}", sentence_first=True) == "2"


def test_sections_pair_each_opening_with_the_next_closing() -> None:
    text = "<a>1</a> x <a>2<a>3</a> y <a>4"
    assert last_section(text, "<a>", "</a>") == "2<a>3"
    assert without_sections(text, "<a>", "</a>") == " x  y <a>4"
    assert last_section("</a><a>", "<a>", "</a>") is None
