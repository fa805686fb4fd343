r"""Exact match of a marked answer: a word or number in tags (quickstart/...), or GSM8K's number.

GSM8K's number stands behind "#### ", the mark of its own solutions and the only one the reference knows; a response
without the mark is read where prompts ask for the answer: in tags, else in a \boxed{}.
"""

from __future__ import annotations

import re
from decimal import Decimal

from megatron_rlpr.grading.answer_text import last_boxed, without_sections
from megatron_rlpr.grading.math_normalize import decimal_number
from megatron_rlpr.grading.result import Verdict

_MARKED_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_WITHOUT_DRESSING = str.maketrans("", "", r"$\,!{} _")
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


def grade_exact(response_text: str, reference_answer: str) -> Verdict:
    """Right if the text of the last closed answer section equals the reference, both normalised."""
    answer = last_answer(response_text)
    if answer is None:
        return Verdict(False, "")
    return Verdict(normalise(answer) == normalise(reference_answer), answer.strip())


def grade_gsm8k(response_text: str, reference_answer: str) -> Verdict:
    """Right if the first marked number, without commas, is the reference to the letter.

    Without the mark, right if the last answer section, else the last box, holds the reference or its value: the
    reasoning is not read, a box in the section counts, and so do $1,000 and 1000.00 for 1000.
    """
    marked = _MARKED_NUMBER.search(response_text)
    if marked is not None:
        answer = marked.group(1).replace(",", "")
        return Verdict(answer == reference_answer, answer)
    section = last_answer(response_text)
    place = without_sections(response_text, "<think>", "</think>") if section is None else section
    answer = (last_boxed(place) or section or "").strip()
    if not answer or answer == reference_answer:
        return Verdict(bool(answer), answer)
    number = _plain_number(answer)
    return Verdict(number is not None and number == _plain_number(reference_answer), answer)


def _plain_number(answer: str) -> Decimal | None:
    return decimal_number(answer.translate(_WITHOUT_DRESSING).removesuffix("."))


def last_answer(text: str) -> str | None:
    """What stands between the last <answer> that is closed and its </answer>; None when none is closed."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)]


def normalise(answer: str) -> str:
    """Without outer white space, a trailing full stop, upper case and the commas between thousands."""
    plain = answer.strip().removesuffix(".").rstrip().casefold()
    return plain.replace(",", "") if _GROUPED_NUMBER.fullmatch(plain) else plain
