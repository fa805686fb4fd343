r"""Find the final answer in a free response (spec section 6.4): "the answer is", \boxed{...}, <answer> tags."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BEFORE_THE_ANSWER = ("answer:", "answer is", "answers are", "is approximately")
_BEHIND_THE_ANSWER = ("is answer", "is the answer", "are answers", "are the answers")
_LINKS = ("be ", "is ", "are ", "=", ": ", "get ", "be\n", "is\n", "are\n", ":\n", "get\n")


def find_answer(response: str, *, sentence_first: bool) -> str:
    """The answer of a response.

    sentence_first: drop what follows the last full stop before looking for a linking word ("x is 5", "x = 5"), else
    after it.
    """
    text = response
    for marker in _BEFORE_THE_ANSWER:
        text = _around_last(marker, text)[1]
    for marker in _BEHIND_THE_ANSWER:
        text = _around_last(marker, text)[0]
    if boxed := last_boxed(text):
        text = boxed
    elif (tagged := last_section(text, "<answer>", "</answer>")) is not None:
        text = tagged.strip()
    if sentence_first:
        text = _first_sentences(text)
    for marker in _LINKS:
        text = _around_last(marker, text)[1]
    if not sentence_first:
        text = _first_sentences(text)
    return text


def last_boxed(text: str) -> str | None:
    r"""What the braces behind the last \boxed (else the last \fbox) enclose, stripped; None unless it is closed."""
    place = text.rfind(r"\boxed")
    if place < 0:
        place = text.rfind(r"\fbox")
    start = text.find("{", place) if place >= 0 else -1
    if start < 0:
        return None
    # a stray closing brace before the first opening one leaves the count at zero too early: not closed, as far as the
    # reference can tell
    stop = closing_bracket(text, start, -text.count("}", place, start))
    return text[start + 1 : stop].strip() if stop >= 0 else None


def closing_bracket(text: str, start: int, depth: int, pair: str = "{}") -> int:
    """Where the number of open brackets, `depth` before start, falls to 0; -1 where it never does."""
    for bracket in re.compile(f"[{re.escape(pair)}]").finditer(text, start):
        depth += 1 if bracket[0] == pair[0] else -1
        if depth == 0 and bracket[0] == pair[1]:
            return bracket.start()
    return -1


def last_section(text: str, opening: str, closing: str) -> str | None:
    """What stands between the last opening mark and the closing mark that ends it, as it stands; None without one."""
    found = None
    for start, stop in _sections(text, opening, closing):
        found = text[start + len(opening) : stop - len(closing)]
    return found


def without_sections(text: str, opening: str, closing: str) -> str:
    """The text without any section, its marks included."""
    kept, place = [], 0
    for start, stop in _sections(text, opening, closing):
        kept.append(text[place:start])
        place = stop
    return "".join(kept) + text[place:]


def _sections(text: str, opening: str, closing: str) -> Iterator[tuple[int, int]]:
    """Start and end of each section, from left to right; linear in the text, as a lazy regular expression is not."""
    stop = 0
    while (start := text.find(opening, stop)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            return
        stop = end + len(closing)
        yield start, stop


def first_turn(text: str) -> str:
    """What comes before "user\\n": a base model may go on with a conversation of its own."""
    return text.split("user\n")[0]


def _first_sentences(text: str) -> str:
    """Without the last sentence, when there are several, and without a full stop at the end."""
    if ". " in text:
        text = text[: text.rfind(". ")].strip()
    return text.removesuffix(".")


def _around_last(marker: str, text: str) -> tuple[str, str]:
    """What stands before and behind the last place of an ASCII marker, whatever its case; the text twice without."""
    data = text.encode("utf-8", "surrogatepass")
    place = data.lower().rfind(marker.encode())  # of bytes, only ASCII letters have a lower case
    if place < 0:
        return text, text
    before, behind = data[:place], data[place + len(marker) :]
    return before.decode("utf-8", "surrogatepass").strip(), behind.decode("utf-8", "surrogatepass").strip()
