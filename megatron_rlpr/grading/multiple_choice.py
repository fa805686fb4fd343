"""Multiple choice: is the chosen option, or its text, the right one (spec section 6.3).

Lenient as the reference is (quirk Q25): the right letter counts wherever a known phrase names it, even if another
option is named later.
"""

from __future__ import annotations

import re

from megatron_rlpr.grading.answer_text import first_turn, last_section
from megatron_rlpr.grading.option_phrases import named_options
from megatron_rlpr.grading.prime_math import grade_in_validation
from megatron_rlpr.grading.result import Verdict

LETTERS = "ABCDEFGHIJKLMNOP"
"""All that an option can have (choice_of_16)."""
NOT_MATCHED = "not-macthed"  # the reference's spelling, seen in its result tables
_LETTER_PHRASES = (
    r"ANSWER:\s*{letter}",
    r"Answer:\s*{letter}",
    r"he answer to the question is:?\s*{letter}",
    r"he correct option is:?\s*{letter}",
    r"he correct answer is:?\s*{letter}",
    r"he answer is:?\s*{letter}[\s.]",
    r"he correct answer is:?\s*\({letter}\)",
    r"he correct answer would be option:?\s*{letter}",
    r"Option {letter} therefore correctly asserts",
    r"Answer choice closest to our calculated value:?\s*{letter}",
    r"Here's an answer to your multiple-choice question:?\s*{letter}",
)


def grade_multiple_choice(response_text: str, right_letter: str, letters: str, prompt_text: str) -> Verdict:
    """Right if the response names the right letter, or gives the text that the prompt lists for it.

    letters: all possible options, e.g. "ABCD". The extracted answer is a letter, a text, "" for an empty response or
    NOT_MATCHED.
    """
    response, right_letter = first_turn(response_text), right_letter.strip()
    direct = _direct_hit(response, right_letter, prompt_text)
    if direct.correct:
        return direct
    letter = chosen_letter(response, letters)
    return Verdict(letter == right_letter, letter)


def chosen_letter(response: str, letters: str) -> str:
    """The option that the first fitting phrase names: the first of the letters that occurs in what it found."""
    text = response.replace("\n\nAssistant:", "").strip().replace("**", "").strip()
    if not text:
        return ""
    for found in named_options(text, letters):
        for letter in letters:
            if letter in found:
                return letter
    return NOT_MATCHED


def option_text(prompt_text: str, letter: str, *, letter_may_repeat: bool = True) -> str | None:
    """The text the prompt lists for an option, behind "Options:" or "Choices:" if it has that; None when it lists none.

    letter_may_repeat: "B. (B) text" is read as "text". The reference then takes the first letter of "B. banana" for a
    repetition too.
    """
    for heading in ("Options:\n", "Choices:\n"):
        if heading in prompt_text:
            prompt_text = prompt_text.split(heading)[1]
    repetition = rf"(?:\(?{letter}\)?[.)\s]*)?" if letter_may_repeat else ""
    starts = rf"{letter}[.)\s]*{repetition}\s*", rf"\s*{letter}\s*[.)]\s*", rf"\s*\({letter}\)\s*", rf"\s*{letter}\s+"
    for start in starts:
        if line := re.search(f"^{start}(.*)$", prompt_text, re.IGNORECASE | re.MULTILINE):
            return line.group(1).replace("<|im_end|>", "").strip()
    return None


def _direct_hit(response: str, right_letter: str, prompt_text: str) -> Verdict:
    """Does the right letter or its option's text stand where an answer stands; the last box counts by value too."""
    letter = re.escape(right_letter)
    readings = dict.fromkeys(option_text(prompt_text, letter, letter_may_repeat=may) for may in (True, False))
    texts = [text for text in readings if text]
    for pattern, answer in _direct_patterns(right_letter, texts):
        if re.search(pattern, response):
            return Verdict(True, answer)
    boxed = (last_section(response, "boxed{", "}") or "").lstrip()
    for text in texts if boxed else ():
        verdict = grade_in_validation(boxed, text)
        if verdict.correct:
            return verdict
    return Verdict(False, "")


def _direct_patterns(right_letter: str, texts: list[str]) -> list[tuple[str, str]]:
    """(pattern, answer it stands for), in the order in which they are tried."""
    letter = re.escape(right_letter)
    return [
        (rf"boxed\{{\s*{letter}[\s.}}]", right_letter),
        *((rf"boxed\{{\s*{re.escape(text)}[\s.}}]", text) for text in texts),
        (rf"boxed\{{\s*\\text\{{{letter}[\s.}}]", right_letter),
        (rf"<answer>\s*{letter}\.?\s*</answer>", right_letter),
        *((rf"<answer>\s*{re.escape(text)}\s*</answer>", text) for text in texts),
        *((rf"<answer>\s*{re.escape(text)}[\s.]", text) for text in texts),
        *((phrase.format(letter=letter), right_letter) for phrase in _LETTER_PHRASES),
    ]
