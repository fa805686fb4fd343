"""Phrases that name the chosen option of a multiple-choice question, in the order they are tried (spec appendix A).

In a pattern, X stands for one letter of the options. The last place where a pattern fits counts; a pattern without a
group counts whole. A long response may repeat the beginning of a phrase without end, so nothing is looked for twice:
what comes before and behind "any text" (.*?) are patterns of their own, and a run without the full stop it needs is
passed over whole.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache

_BOXED = (
    r"[Tt]he correct answer is:?.*?boxed{(X)}",
    r"[Tt]he correct option is:?.*?boxed{(X)}",
    r"[Tt]he correct answer option is:?.*?boxed{(X)}",
    r"[Tt]he correct answer is:?.*?\((X)\)",
    r"boxed\{(X)\}",
    r"boxed\{[^a-zA-Z0-9]*(X)[^a-zA-Z0-9]*\}",
    r"boxed\{(X)[^a-zA-Z0-9].*?\}",
    r"boxed\{\((X)\)[^a-zA-Z0-9].*?\}",
    r"boxed\{\[(X)\][^a-zA-Z0-9].*?\}",
)
_TAGGED = (
    r"<answer>\s*\(?(X)[\s.)]",
    r"<answer>\s*(X)\s*</answer>",
    r"(?i:ANSWER)\s*:\s*(X_)",
    r"(?i:ANSWER)\s*:\s*\((X_)\)",
)
_CHINESE = (
    r"答案是?\s*(X)", r"答案是?\s*：\s*(X)", r"答案是?\s*:\s*(X)", r"答案是选项?\s*:\s*(X)",
    r"答案选项应?该?为\s*(X)", r"答案选项应?该?是\s*(X)", r"答案应该?是\s*(X)", r"答案应该?选\s*(X)",
    r"答案选项为?\s*：\s*(X)", r"答案选项为?\s+\(?\*?\*?(X)\*?\*?\)?", r"选项为?\s+\(?\*?\*?(X)\*?\*?\)?",
    r"答案选项是?\s*:\s*(X)", r"答案为\s*(X)", r"答案选\s*(X)", r"选择?\s*(X)", r"故选?\s*(X)",
    r"只有选?项?\s?(X)\s?是?对", r"只有选?项?\s?(X)\s?是?错", r"只有选?项?\s?(X)\s?不?正确",
    r"只有选?项?\s?(X)\s?错误", r"说法不?对选?项?的?是\s?(X)", r"说法不?正确选?项?的?是\s?(X)",
    r"说法错误选?项?的?是\s?(X)", r"(X)\s?是正确的", r"(X)\s?是正确答案", r"选项\s?(X)\s?正确", r"所以答\s?(X)",
)  # fmt: skip
_AT_THE_END = (
    r"所以\s?(X[.。$]?$)", r"所有\s?(X[.。$]?$)", r"[\s，：:,](X)[。，,.]?$", r"[\s，,：:][故即](X)[。.]?$",
    r"[\s，,：:]因此(X)[。.]?$", r"[是为。]\s?(X)[。.]?$", r"因此\s?(X)[。.]?$", r"显然\s?(X)[。.]?$",
    r"答案是\s?(?:(\S+)(?:。|$)|\S+)", r"答案应该是\s?(?:(\S+)(?:。|$)|\S+)", r"答案为\s?(?:(\S+)(?:。|$)|\S+)",
)  # fmt: skip
_ENGLISH = (
    r"[Tt]he answer is:?\s+\(?(X)\)?",
    r"[Tt]he answer is:?\s+\(?\*?\*?(X)\*?\*?\)?",
    r"[Tt]he answer is option:?\s+\(?(X)\)?",
    r"[Tt]he correct answer is:?\s+\(?(X)\)?",
    r"[Tt]he correct answer is option:?\s+\(?(X)\)?",
    r"[Tt]he answer to the question is:?\s+\(?(X)\)?",
    r"[Tt]he final answer is:?\s+\(?(X)\)?",
)
_AT_THE_START = (
    r"^选项\s?(X)", r"^(X)\s?选?项", r"^X[\s。，,：:.$]", r"答案:\s*(X)", r"故此为\s*(X)",
)  # fmt: skip


@lru_cache(maxsize=8)
def option_patterns(letters: str) -> tuple[tuple[re.Pattern[str], ...], ...]:
    """The patterns for the option letters, e.g. "ABCD", each as one or two that fit one behind the other.

    X_ ignores case: "answer: b" fits, and names no option.
    """
    one = f"[{letters}]"
    phrases = _BOXED + _TAGGED + _CHINESE + _AT_THE_END + _ENGLISH + _AT_THE_START
    chosen = [phrase.replace("X_", f"(?i:{one})").replace("X", one) for phrase in phrases]
    return tuple(tuple(re.compile(part, re.DOTALL) for part in phrase.split(".*?")) for phrase in chosen)


def named_options(text: str, letters: str) -> Iterator[str]:
    """What each pattern that fits found, in the order of the patterns: the last place of each."""
    for parts in option_patterns(letters):
        last = deque(_places(parts, text), maxlen=1)
        yield from last


def _places(parts: Sequence[re.Pattern[str]], text: str) -> Iterator[str]:
    """What a pattern finds at each place where it fits, from left to right; linear in the text."""
    if len(parts) == 1:
        for found in parts[0].finditer(text):
            if not found.re.groups:
                yield found.group()
            elif found.group(1) is not None:
                yield found.group(1)
        return
    opening, closing = parts
    place = 0
    while (begun := opening.search(text, place)) and (ended := closing.search(text, begun.end())):
        yield (begun if opening.groups else ended).group(1)
        place = ended.end()
