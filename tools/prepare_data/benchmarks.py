"""What a record of each public data set says: its question, its reference answer and its subject.

A prompt is the reference's system message and the bare question (spec section 1.2). Options stand behind "Options:",
one a line with its letter, which is where the graders look for their texts (spec section 6.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_rlpr.grading.multiple_choice import LETTERS
from megatron_rlpr.system.quoting import quoted
from megatron_rlpr.types import UserError
from tools.prepare_data.foreign_rows import field, text_field

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Question:
    """A question as the user asks it, its reference answer, and its subject ("" where none is told)."""

    text: str
    answer: str
    subject: str = ""


Convert = Callable[[Mapping[str, Any]], Question | None]
"""A record's question; None for one that is left out on purpose. Raises UserError for a bad record."""


def gsm8k(record: Mapping[str, Any]) -> Question:
    """GSM8K: the number behind "####" ends the worked solution."""
    _, mark, number = text_field(record, "answer").rpartition("####")
    if not mark:
        raise UserError("field 'answer' has no '#### number' at its end")
    return Question(text_field(record, "question"), number.strip().replace(",", ""), "mathematics")


def theoremqa(record: Mapping[str, Any]) -> Question | None:
    """TheoremQA; questions about a picture are left out, as in the reference."""
    if record.get("Picture"):
        return None
    return Question(text_field(record, "Question"), answer_text(field(record, "Answer")), _subject(record, "field"))


def mmlu_pro(record: Mapping[str, Any]) -> Question:
    """MMLU-Pro: up to sixteen options, the answer is a letter."""
    return _with_options(record, "question", "answer", "options", "category")


def hugging_face(question: str, answer: str, options: str = "", subject: str = "") -> Convert:
    """Records whose fields have these names; options, subject: "" where there are none."""
    if options:
        return lambda record: _with_options(record, question, answer, options, subject)
    return lambda record: Question(
        text_field(record, question), answer_text(field(record, answer)), _subject(record, subject)
    )


def answer_text(value: Any) -> str:
    """An answer of any plain kind as text: True, 11760, 0.25, [0, 5]."""
    kinds = (str, int, float, list)  # bool is an int
    odd = isinstance(value, float) and not math.isfinite(value)
    if not isinstance(value, kinds) or odd or not str(value).strip():
        raise UserError(f"the answer is {quoted(value)}, expected a text, a number, a truth value or a list")
    return str(value).strip()


def _with_options(record: Mapping[str, Any], question: str, answer: str, options: str, subject: str) -> Question:
    texts = _option_texts(field(record, options), options)
    right = _right_option(field(record, answer), texts)
    if texts.count(texts[right]) > 1:
        raise UserError(f"the right option {quoted(texts[right])} is there more than once")
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    text = "\n".join(["Question:", text_field(record, question), "Options:", *lines])
    return Question(text, LETTERS[right], _subject(record, subject))


def _option_texts(value: Any, name: str) -> list[str]:
    """On one line each. value: a list of texts, or {label: [...], text: [...]} with the labels in order."""
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"field {name!r} is {quoted(value)}, expected a list of texts")
    if not 2 <= len(texts) <= len(LETTERS):
        raise UserError(f"field {name!r} holds {len(texts)} options, expected 2 to {len(LETTERS)}")
    return [" ".join(text.split()) for text in texts]


def _right_option(answer: Any, texts: Sequence[str]) -> int:
    """Which option the answer means: its letter, its number from 0, or its text."""
    if type(answer) is int and 0 <= answer < len(texts):
        return answer
    if isinstance(answer, str):
        letter, text = answer.strip(), " ".join(answer.split())
        if len(letter) == 1 and letter in LETTERS[: len(texts)]:
            return LETTERS.index(letter)
        if text in texts:
            return texts.index(text)
    letters = f"A to {LETTERS[len(texts) - 1]}"
    raise UserError(f"the answer {quoted(answer)} is no letter from {letters}, no number of an option and none's text")


def _subject(record: Mapping[str, Any], name: str) -> str:
    return str(record.get(name) or "") if name else ""


@dataclass(frozen=True)
class Benchmark:
    """A public data set. names: of its file, by split; data_source: of its rows ("": the file's name, as in the
    release). rows: how many are drawn where nothing else is asked for (0: all)."""

    convert: Convert
    names: Mapping[Split, str]
    data_source: str = ""
    rows: int = 0


BENCHMARKS = {
    "gsm8k": Benchmark(gsm8k, {"train": "gsm8k", "test": "gsm8k_Avg2"}, "openai/gsm8k"),
    "theoremqa": Benchmark(theoremqa, {"train": "TheoremQA", "test": "TheoremQA_Avg2"}),
    "mmlu-pro": Benchmark(mmlu_pro, {"train": "MMLUPro", "test": "MMLUPro-1000_Avg2"}, rows=1000),
}
