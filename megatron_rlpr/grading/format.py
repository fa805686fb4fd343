"""1 for a response whose tags are as the prompt asks, else 0 (spec sections 2.5 and 6.1)."""

from __future__ import annotations

from megatron_rlpr.types import UserError

OPEN_THINK, CLOSE_THINK = "<think>", "</think>"
OPEN_ANSWER, CLOSE_ANSWER = "<answer>", "</answer>"

_OPEN_BOX = r"\boxed{"


def format_score(response_text: str, format_mode: str) -> float:
    """R1: starts with <think>, then </think>, <answer>, </answer>, each exactly once, any text between and behind.

    R1_nothink: the two answer tags, each once, in order. Raises UserError for another mode.
    """
    tags: tuple[str, ...]
    if format_mode == "R1":
        tags = (OPEN_THINK, CLOSE_THINK, OPEN_ANSWER, CLOSE_ANSWER)
    elif format_mode == "R1_nothink":
        tags = (OPEN_ANSWER, CLOSE_ANSWER)
    else:
        raise UserError(f"reward.format_mode={format_mode!r} is unknown; choose R1 or R1_nothink")
    if any(response_text.count(tag) != 1 for tag in tags):
        return 0.0
    places = [response_text.index(tag) for tag in tags]
    return float(places == sorted(places) and (format_mode != "R1" or places[0] == 0))


def rule_format_score(response_text: str, prompt_text: str, format_mode: str) -> float:
    """What the prompt asks for: its answer tags (as format_score), else a \\boxed{...}, else nothing (always 1)."""
    if OPEN_ANSWER in prompt_text and CLOSE_ANSWER in prompt_text:
        return format_score(response_text, format_mode)
    if _OPEN_BOX in prompt_text:
        return float("}" in response_text.partition(_OPEN_BOX)[2])
    return 1.0
