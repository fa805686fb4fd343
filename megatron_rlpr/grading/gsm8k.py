"""GSM8K: the number behind the first "#### " (data source openai/gsm8k)."""

from __future__ import annotations

import re

from megatron_rlpr.grading.result import Verdict

_MARKED_NUMBER = re.compile(r"#### (-?[0-9.,]+)")


def grade_gsm8k(response_text: str, reference_answer: str) -> Verdict:
    """Right if the marked number, without commas, is the reference to the letter; wrong when no number is marked."""
    marked = _MARKED_NUMBER.search(response_text)
    if marked is None:
        return Verdict(False, "")
    answer = marked.group(1).replace(",", "")
    return Verdict(answer == reference_answer, answer)
