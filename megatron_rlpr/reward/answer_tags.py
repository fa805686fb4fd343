"""Where the answer sits in a response, read from its text.

A response may be spliced when its tags are in order (spec section 2.2, step 2): R1 wants exactly one <think>, </think>
and <answer>, R1_nothink exactly one <answer>. The closing </answer> is not needed. An answer tag with nothing at all
behind it is refused (quirk Q3: the reference means to, but tests after it appended the end-of-sequence text).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rlpr.grading.format import CLOSE_ANSWER, CLOSE_THINK, OPEN_ANSWER, OPEN_THINK

_LEADING_WHITESPACE = " \n\t\r"


@dataclass(frozen=True)
class AnswerSlot:
    """The white space around the generated answer, which the spliced answer takes over.

    leading: what follows <answer> at once, made of space, newline, tab and carriage return; may be "".
    trailing: what stands right before </answer>; None when the answer is not closed.
    """

    leading: str
    trailing: str | None


def find_answer_slot(response_text: str, format_mode: str, eos_text: str, pad_text: str) -> AnswerSlot | None:
    """The slot of a response's answer, or None when the reference answer cannot be spliced in."""
    text = strip_padding(response_text, pad_text).removesuffix(eos_text)
    if text.count(OPEN_ANSWER) != 1:
        return None
    tag = text.index(OPEN_ANSWER)
    if format_mode == "R1" and not _thinks_before(text, tag):
        return None
    section = text[tag + len(OPEN_ANSWER) :]
    if not section:
        return None
    answer, closing, _ = section.partition(CLOSE_ANSWER)
    leading = section[: len(section) - len(section.lstrip(_LEADING_WHITESPACE))]
    return AnswerSlot(leading, answer[len(answer.rstrip()) :] if closing else None)


def _thinks_before(text: str, tag: int) -> bool:
    if text.count(OPEN_THINK) != 1 or text.count(CLOSE_THINK) != 1:
        return False
    return text.index(OPEN_THINK) < text.index(CLOSE_THINK) < tag


def strip_padding(text: str, pad_text: str) -> str:
    """The text without any repetition of the pad token's text at either end."""
    if not pad_text:
        return text
    start, stop = 0, len(text)
    while text.startswith(pad_text, start, stop):
        start += len(pad_text)
    while text.endswith(pad_text, start, stop):
        stop -= len(pad_text)
    return text[start:stop]


def extract_answer(response_text: str) -> str:
    """The stripped text of the first closed answer section, "" when there is none."""
    answer, closing, _ = response_text.partition(OPEN_ANSWER)[2].partition(CLOSE_ANSWER)
    return answer.strip() if closing else ""
