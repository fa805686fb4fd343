"""The exact grader of the quickstart's data, and its dispatch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.grading.dispatch import grade
from megatron_rlpr.grading.exact import grade_exact
from megatron_rlpr.grading.result import GradeTask
from megatron_rlpr.types import UserError


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("<think>t</think> <answer> 42 </answer>", "42"),
        ("<answer>Paris.</answer>", "paris"),
        ("<answer>1,234,567</answer>", "1234567"),
        ("<answer>-1,000.5</answer>", "-1000.5"),
        ("<answer>5</answer> no, <answer>6</answer>", "6"),
        ("<answer>7</answer> and <answer>never closed", "7"),
    ],
)
def test_the_last_closed_answer_counts_whatever_its_case_or_commas(response: str, reference: str) -> None:
    assert grade_exact(response, reference).correct


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("42", "42"),
        ("<answer>42", "42"),
        ("42</answer>", "42"),
        ("</answer>42<answer>", "42"),
        ("", ""),
        ("<answer>1,2</answer>", "12"),
        ("<answer>42 apples</answer>", "42"),
    ],
)
def test_without_a_closed_answer_or_with_another_text_it_is_wrong(response: str, reference: str) -> None:
    assert not grade_exact(response, reference).correct


@pytest.mark.parametrize("phase", ["train", "validation"])
@pytest.mark.parametrize(
    ("response", "accuracy"),
    [
        (r"\boxed{1000}", 1.0),
        (r"so \boxed{999}, no, \boxed{1{,}000}", 1.0),
        ("<think>5</think> <answer> 1000 </answer>", 1.0),
        (r"<think>r</think><answer> \boxed{\$1,000.00} </answer>", 1.0),
        ("#### 1,000", 1.0),
        ("#### 5 \\boxed{1000}", 0.0),
        (r"<answer>5</answer> \boxed{1000}", 0.0),
        (r"<think>\boxed{1000}</think> none", 0.0),
        ("1000", 0.0),
        ("<answer>1000", 0.0),
        (r"\boxed{1000", 0.0),
        (r"\boxed{1000 or 5}", 0.0),
        ("", 0.0),
    ],
)
def test_gsm8k_takes_its_own_mark_and_without_it_tags_and_boxes(response: str, accuracy: float, phase: Any) -> None:
    assert grade(GradeTask("openai/gsm8k", response, "1000", "", phase)).accuracy == accuracy


def test_math_takes_the_last_box_and_without_any_the_answer_section() -> None:
    def accuracy(response: str) -> float:
        return grade(GradeTask("lighteval/MATH", response, r"\frac{1}{2}")).accuracy

    assert accuracy(r"<think>r</think> <answer> \dfrac12 </answer>") == 1.0
    assert accuracy(r"\boxed{3} <answer> \frac12 </answer>") == 0.0
    assert accuracy(r"\frac12 </answer>") == 0.0


@settings(deadline=None)
@given(st.text(), st.text(max_size=20).filter(lambda text: "<" not in text))
def test_any_text_before_the_answer_changes_nothing(before: str, answer: str) -> None:
    assert grade_exact(f"{before}<answer>{answer}</answer>", answer).correct


def test_the_format_score_follows_what_the_prompt_asks() -> None:
    asks = "Write <think> </think> <answer> </answer>."

    def score(response: str, format_mode: str = "R1") -> float:
        return grade(GradeTask("quickstart/sums", response, "4", asks, "train", format_mode)).format

    assert score("<answer>4</answer>") == 0.0
    assert score("<answer>4</answer>", "R1_nothink") == 1.0
    assert score("<think>t</think><answer>4</answer>") == 1.0


def test_an_unknown_data_source_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"'openai/gsm8'.*did you mean 'openai/gsm8k'"):
        grade(GradeTask("openai/gsm8", "4", "4", "", "validation"))
    with pytest.raises(UserError, match=r"quickstart/\*"):
        grade(GradeTask("zzz", "4", "4", "", "validation"))
