"""The ten families of short questions of the quickstart: every question they can ask, and the fact each one asks for.

All questions are enumerated, so a data set is a sample without replacement. Train and held-out questions differ in the
*fact* (an arithmetic expression, a word, a month), not only in wording: `is_held_out` decides by a hash of the fact,
for all seeds and for all families alike, so "9 - 4" is either always trained on or never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.quickstart_words import CONVERSIONS, MONTHS, NAMES, OPPOSITES, PAST_TENSES, PLURALS, THINGS

HELD_OUT_SHARE = 0.22
# One of the salts with which every family keeps enough questions on both sides (the month family has twelve facts
# only).
SALT = "45"


@dataclass(frozen=True)
class Question:
    """One question with its reference answer; fact: what must be known to answer it."""

    task: str
    ability: str
    text: str
    answer: str
    fact: str


@dataclass(frozen=True)
class Task:
    """A family of questions; vocabulary: the fact is a word, which must then appear in one split only."""

    name: str
    ability: str
    questions: Callable[[], Iterator[tuple[str, str, str]]]
    vocabulary: bool = False

    def enumerate(self) -> list[Question]:
        """Every question of the family, in a fixed order, no text twice."""
        return [Question(self.name, self.ability, text, answer, fact) for text, answer, fact in self.questions()]


def is_held_out(fact: str) -> bool:
    """Whether questions about this fact belong to the held-out set; the same for every seed and machine."""
    position = int.from_bytes(hashlib.sha256((SALT + fact).encode()).digest()[:4], "big") / 2**32
    return position < HELD_OUT_SHARE


def _sum(a: int, b: int) -> str:
    return f"{min(a, b)} + {max(a, b)}"


def _word_add() -> Iterator[tuple[str, str, str]]:
    for a in range(2, 13):
        for b in range(2, 13):
            for name in NAMES:
                for thing in THINGS:
                    text = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"
                    yield text, str(a + b), _sum(a, b)


def _word_sub() -> Iterator[tuple[str, str, str]]:
    for a in range(5, 20):
        for b in range(1, a):
            for name in NAMES:
                for thing in THINGS:
                    text = f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?"
                    yield text, str(a - b), f"{a} - {b}"


def _word_mul() -> Iterator[tuple[str, str, str]]:
    for a in range(2, 10):
        for b in range(2, 10):
            for name in NAMES:
                for thing in THINGS:
                    text = f"{name} has {a} bags with {b} {thing} in each bag. How many {thing} does {name} have?"
                    yield text, str(a * b), f"{min(a, b)} * {max(a, b)}"


def _subtraction() -> Iterator[tuple[str, str, str]]:
    for a in range(2, 21):
        for b in range(1, min(a, 10)):
            yield f"What is {a} - {b}?", str(a - b), f"{a} - {b}"


def _chain_sum() -> Iterator[tuple[str, str, str]]:
    """reasoning-gym's chain_sum with two one-digit terms: few enough that a long draw holds them all."""
    import reasoning_gym

    draws = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1, size=4000, seed=0
    )
    distinct = {draw["question"]: draw for draw in draws}
    for text in sorted(distinct):
        expression = distinct[text]["metadata"]["expression"]
        left, sign, right = expression.split()
        yield text, distinct[text]["answer"], _sum(int(left), int(right)) if sign == "+" else expression


def _opposite() -> Iterator[tuple[str, str, str]]:
    for word, other in OPPOSITES.items():
        fact = " ".join(sorted((word, other)))
        yield f'What is the opposite of the word "{word}"?', other, fact
        yield f'What is the opposite of the word "{other}"?', word, fact


def _plural() -> Iterator[tuple[str, str, str]]:
    for word, plural in PLURALS.items():
        yield f'What is the plural of "{word}"?', plural, word


def _past_tense() -> Iterator[tuple[str, str, str]]:
    for word, past in PAST_TENSES.items():
        yield f'What is the past tense of "{word}"?', past, word


def _unit() -> Iterator[tuple[str, str, str]]:
    for large, small, factor in CONVERSIONS:
        for count in range(2, 10):
            yield f"How many {small} are in {count} {large}?", str(count * factor), f"{count} {large} in {small}"


def _month_after() -> Iterator[tuple[str, str, str]]:
    for month, following in zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True):
        yield f"Which month comes right after {month}?", following, month
        for name in NAMES:
            yield f"{name} was born in the month right after {month}. Which month is that?", following, month


TASKS = (
    Task("word_add", "arithmetic", _word_add),
    Task("word_sub", "arithmetic", _word_sub),
    Task("word_mul", "arithmetic", _word_mul),
    Task("chain_sum", "arithmetic", _chain_sum),
    Task("subtraction", "arithmetic", _subtraction),
    Task("opposite", "vocabulary", _opposite, vocabulary=True),
    Task("plural", "grammar", _plural, vocabulary=True),
    Task("past_tense", "grammar", _past_tense, vocabulary=True),
    Task("unit", "measurement", _unit),
    Task("month_after", "calendar", _month_after, vocabulary=True),
)
