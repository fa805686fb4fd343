"""Exact match of a marked answer: a word or number in tags (quickstart/...), or GSM8K's number behind "#### "."""

from __future__ import annotations

import re

from megatron_rlpr.grading.result import Verdict

_MARKED_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


def grade_exact(response_text: str, reference_answer: str) -> Verdict:
    """Right if the text of the last closed answer section equals the reference, both normalised."""
    answer = last_answer(response_text)
    if answer is None:
        return Verdict(False, "")
    return Verdict(normalise(answer) == normalise(reference_answer), answer.strip())


def grade_gsm8k(response_text: str, reference_answer: str) -> Verdict:
    """Right if the first marked number, without commas, is the reference to the letter."""
    marked = _MARKED_NUMBER.search(response_text)
    if marked is None:
        return Verdict(False, "")
    answer = marked.group(1).replace(",", "")
    return Verdict(answer == reference_answer, answer)


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
