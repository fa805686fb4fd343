"""Labelled responses as rollout groups: what a policy that keeps the format would have written.

A line of the file is a JSON object with `question`, `response`, `reference` and `correct`; with `options` and `pred`
(a letter) the chosen option's text is the response's answer, else its last line is. Responses to the same question are
a group.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rlpr.data.chat_template import render
from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError

_FIELDS = ("question", "response", "reference", "correct")
_CONCLUSION = re.compile(r"\s*(?:so|therefore|thus|hence)?,?\s*the answer is:? \(?[A-Z]\)?\.?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledGroups:
    """Groups, and for every response in their order whether its answer is right."""

    groups: tuple[RolloutGroup, ...]
    correct: tuple[bool, ...]


def labelled_groups(tokenizer: Any, file: Path, limit: int, longest: int) -> LabelledGroups:
    """The first `limit` responses to questions that have several. longest: tokens of prompt and response together.

    Raises UserError for a line that is no such object, and where nothing is left.
    """
    rows = _rows(file)
    questions = list(rows)
    prompts = render(tokenizer, [[{"role": "user", "content": question}] for question in questions], file, 1)
    groups: list[RolloutGroup] = []
    correct: list[bool] = []
    for number, (question, prompt_text) in enumerate(zip(questions, prompts, strict=True)):
        prompt_ids = tuple(tokenizer(prompt_text, add_special_tokens=False)["input_ids"])
        written = [(_response(tokenizer, row), bool(row["correct"])) for row in rows[question]]
        fitting = [pair for pair in written if len(prompt_ids) + len(pair[0].token_ids) <= longest]
        fitting = fitting[: limit - len(correct)]
        if len(fitting) > 1:
            message = {"role": "user", "content": question}
            prompt = Prompt(number, prompt_ids, (message,), str(rows[question][0]["reference"]), file.stem)
            groups.append(RolloutGroup(prompt, tuple(response for response, _ in fitting)))
            correct += [label for _, label in fitting]
    if not groups:
        raise UserError(f"{file}: no question has two responses of at most {longest} tokens with their prompt")
    return LabelledGroups(tuple(groups), tuple(correct))


def _rows(file: Path) -> dict[str, list[dict[str, Any]]]:
    rows = defaultdict(list)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: it is no JSON ({error})") from error
        missing = [name for name in _FIELDS if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"{file}, line {number}: {', '.join(missing)} is missing; a line has {', '.join(_FIELDS)}")
        rows[str(row["question"])].append(row)
    return rows


def _response(tokenizer: Any, row: dict[str, Any]) -> Response:
    reasoning, letter = _CONCLUSION.sub("", str(row["response"])).strip(), str(row.get("pred", ""))
    options = row.get("options") or []
    chosen = ord(letter) - ord("A") if len(letter) == 1 else -1
    answer = options[chosen] if 0 <= chosen < len(options) else reasoning.splitlines()[-1] if reasoning else ""
    text = f"<think> {reasoning} </think> <answer> {answer} </answer>{tokenizer.eos_token}"
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Response(tokens, text, (), "stop", seed=0)
