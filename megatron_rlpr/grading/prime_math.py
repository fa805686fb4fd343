"""Mathematics with a free-form answer: the validation grader and the stricter one of training (spec section 6.4).

In validation the answer may stand anywhere in the response; in training the reasoning is left out, and when there is an
answer section only the last one counts.
"""

from __future__ import annotations

import re

from megatron_rlpr.grading.answer_text import find_answer, first_turn, last_section, without_sections
from megatron_rlpr.grading.math_grade import answers_match
from megatron_rlpr.grading.result import Verdict

_PHRASES = ("answer to the question is", "correct answer is", "answer is", "final answer is", "correct answer would be")


def grade_in_validation(response_text: str, reference_answer: str) -> Verdict:
    """Right if the reference stands where an answer stands, or if an answer found in the response equals it."""
    response = first_turn(response_text)
    if _stands_as_answer(reference_answer, response):
        return Verdict(True, reference_answer)
    return _grade_found_answers(response, reference_answer)


def grade_in_training(response_text: str, reference_answer: str) -> Verdict:
    """Right if the answer in the last answer section, else in the response without its reasoning, is the reference."""
    response = without_sections(response_text, "<think>", "</think>")
    answer = last_section(response, "<answer>", "</answer>") or response
    if answer.strip() == reference_answer.strip():  # "The sky is blue." would be searched for what the sky is
        return Verdict(True, answer)
    return _grade_found_answers(answer, reference_answer)


def _grade_found_answers(response: str, reference_answer: str) -> Verdict:
    first = find_answer(response, sentence_first=True)
    if answers_match(first, reference_answer):
        return Verdict(True, first)
    second = find_answer(response, sentence_first=False)
    return Verdict(second != first and answers_match(second, reference_answer), second)


def _stands_as_answer(reference_answer: str, response: str) -> bool:
    """True if the reference, to the letter, is boxed, tagged, or follows "ANSWER:" or "... the correct answer is"."""
    if not reference_answer.strip():
        return False
    answer = re.escape(reference_answer)
    whole = rf"\s*{answer}(?=\s|\.\s|\.?$)"
    places = [rf"boxed\{{\s*{answer}\s*\}}", rf"<answer>\s*{answer}\s*</answer>", rf"ANSWER:{whole}"]
    places += [rf"he {phrase}:?{whole}" for phrase in _PHRASES]
    return any(re.search(place, response) for place in places)
