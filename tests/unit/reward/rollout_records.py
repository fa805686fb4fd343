"""Prompts and responses made from text, as the rollout engine would hand them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_rlpr.types import Prompt, Response, RolloutGroup

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenizers"
QUESTION = (
    "Give the answer in <answer> </answer> tags, e.g. <think> reasoning </think> <answer> 7 </answer>. "
    "What is six times seven?"
)


def prompt(tokenizer: Any, reference_answer: str = "42", data_source: str = "unit") -> Prompt:
    messages = ({"role": "user", "content": QUESTION},)
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(0, tuple(ids), messages, reference_answer, data_source)


def response_of_ids(tokenizer: Any, ids: list[int], seed: int = 0) -> Response:
    return Response(tuple(ids), tokenizer.decode(ids), (0.0,) * len(ids), "stop", seed)


def response(tokenizer: Any, text: str, ends: bool = True) -> Response:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return response_of_ids(tokenizer, ids + [tokenizer.eos_token_id] * ends)


def group(tokenizer: Any, *texts: str, reference_answer: str = "42", data_source: str = "unit") -> RolloutGroup:
    return RolloutGroup(
        prompt(tokenizer, reference_answer, data_source), tuple(response(tokenizer, text) for text in texts)
    )
