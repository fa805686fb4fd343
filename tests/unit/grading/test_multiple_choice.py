"""Multiple choice beyond the golden cases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.grading.multiple_choice import NOT_MATCHED, chosen_letter, grade_multiple_choice, option_text

PROMPT = "user\nQuestion:\nWhich fruit?\nOptions:\nA. apple\nB. banana\n(C) cherry\nD. D) date\nassistant\n"


@pytest.mark.parametrize(
    "response",
    ["<answer>banana</answer>", r"\boxed{banana}", "<answer> B) banana </answer>", "**B**: the answer is B."],
)
def test_the_letter_or_the_text_of_the_right_option_counts(response: str) -> None:
    assert grade_multiple_choice(response, "B", "ABCD", PROMPT).correct
    assert not grade_multiple_choice(response, "C", "ABCD", PROMPT).correct


def test_the_text_of_an_option_is_read_from_its_line() -> None:
    assert option_text(PROMPT, "C") == "cherry"
    assert option_text(PROMPT, "D") == "date"
    assert option_text(PROMPT, "B", letter_may_repeat=False) == "banana"
    assert option_text("no options here", "B") is None


def test_an_option_the_prompt_does_not_list_is_not_matched_by_its_absence() -> None:
    assert not grade_multiple_choice("<answer>None</answer>", "P", "ABCDEFGHIJKLMNOP", PROMPT).correct


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_response_names_one_option_or_none(response: str) -> None:
    assert chosen_letter(response, "ABCD") in {"A", "B", "C", "D", "", NOT_MATCHED}


def test_the_last_place_of_the_first_fitting_phrase_counts() -> None:
    assert chosen_letter(r"\boxed{A} then \boxed{C}. The answer is: B", "ABCD") == "C"
