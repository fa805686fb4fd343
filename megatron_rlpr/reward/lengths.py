"""How many tokens of a response are reasoning and how many are answer (spec section 6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.grading.format import CLOSE_ANSWER, CLOSE_THINK, OPEN_ANSWER, OPEN_THINK, format_score


def think_answer_lengths(tokenizer: Any, response_texts: Sequence[str], format_mode: str) -> list[tuple[int, int]]:
    """(reasoning, answer) tokens of every response, both 0 for one whose format is wrong.

    Reasoning is what the think tags hold, or with R1_nothink what comes before the answer tag; white space at the ends
    of both parts is not counted.
    """
    parts = [text for response in response_texts for text in _parts(response, format_mode)]
    counts = [len(encoding) for encoding in encode(tokenizer, parts)]
    return list(zip(counts[::2], counts[1::2], strict=True))


def length_metrics(lengths: Sequence[tuple[int, int]]) -> dict[str, float]:
    """think_length/ and answer_length/ {mean, max, min} over all responses; empty when there are none."""
    metrics: dict[str, float] = {}
    for name, values in zip(("think_length", "answer_length"), zip(*lengths, strict=True), strict=False):
        metrics[f"{name}/mean"] = sum(values) / len(values)
        metrics[f"{name}/max"] = float(max(values))
        metrics[f"{name}/min"] = float(min(values))
    return metrics


def _parts(text: str, format_mode: str) -> tuple[str, str]:
    if format_score(text, format_mode) != 1:
        return "", ""
    before_answer, _, rest = text.partition(OPEN_ANSWER)
    answer = rest.partition(CLOSE_ANSWER)[0]
    thinking = before_answer
    if format_mode == "R1":
        thinking = before_answer.partition(OPEN_THINK)[2].partition(CLOSE_THINK)[0]
    return thinking.strip(), answer.strip()
