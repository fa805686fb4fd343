"""Labelled responses as rollout groups: what a policy that keeps the format would have written.

A line of the file is a JSON object with `question`, `response`, `reference` and `correct` (true or false). With
`options` and `pred` (a letter) the chosen option's text is the response's answer, else its last line is. `category` and
`data_source` (whose grader reads the response) may be there too. Responses to the same question with the same reference
are a group.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_rlpr.data.chat_template import render
from megatron_rlpr.system.quoting import quoted
from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError
from tools.json_lines import json_lines

_TEXTS = ("question", "response", "reference")
_FIELDS = (*_TEXTS, "correct")
_CONCLUSION = re.compile(r"\s*(?:so|therefore|thus|hence)?,?\s*the answer is:? \(?[A-Z]\)?\.?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledRow:
    """One line of the file (numbered from 1). pred: the chosen option's letter; "" where the line has no such field."""

    line: int
    question: str
    response: str
    reference: str
    correct: bool
    category: str = ""
    data_source: str = ""
    pred: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledGroups:
    """Groups, and for every response in their order the line that it is from. longer: lines that were left out."""

    groups: tuple[RolloutGroup, ...]
    rows: tuple[LabelledRow, ...]
    longer: int

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether the answer is right, of every response."""
        return tuple(row.correct for row in self.rows)


def read_labelled(file: Path) -> list[LabelledRow]:
    """All lines in order; blank ones are skipped. Raises UserError for the first line that is no such object."""
    rows = [_row(record, file, number) for number, record in json_lines(file)]
    if not rows:
        raise UserError(f"{file}: it holds no responses; a line has {', '.join(_FIELDS)}")
    return rows


def labelled_groups(
    tokenizer: Any,
    rows: Sequence[LabelledRow],
    file: Path,
    longest: int,
    *,
    at_least: int = 1,
    limit: int | None = None,
) -> LabelledGroups:
    """The first `limit` responses of groups that have at_least so many.

    longest: tokens of prompt and response together. Raises UserError where nothing is left.
    """
    members = defaultdict(list)
    for row in rows:
        members[row.question, row.reference].append(row)
    messages = [{"role": "user", "content": question} for question, _ in members]
    prompts = render(tokenizer, [[message] for message in messages], file, 1)
    groups: list[RolloutGroup] = []
    kept: list[LabelledRow] = []
    longer = 0
    for number, ((_, reference), text) in enumerate(zip(members, prompts, strict=True)):
        prompt_ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        written = [(row, _response(tokenizer, row)) for row in members[messages[number]["content"], reference]]
        fitting = [pair for pair in written if len(prompt_ids) + len(pair[1].token_ids) <= longest]
        longer += len(written) - len(fitting)
        fitting = list(islice(fitting, None if limit is None else limit - len(kept)))
        if len(fitting) >= at_least:
            prompt = Prompt(number, prompt_ids, (messages[number],), reference, file.stem)
            groups.append(RolloutGroup(prompt, tuple(response for _, response in fitting)))
            kept += [row for row, _ in fitting]
    if not groups:
        wanted = "no question has two responses" if at_least > 1 else "there is no response"
        raise UserError(f"{file}: {wanted} of at most {longest} tokens with the prompt")
    return LabelledGroups(tuple(groups), tuple(kept), longer)


def _row(row: dict[str, Any] | UserError, file: Path, number: int) -> LabelledRow:
    where = f"{file}, line {number}"
    if isinstance(row, UserError):
        raise UserError(f"{where}: it {row}")
    missing = [name for name in _FIELDS if name not in row]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} is missing; a line has {', '.join(_FIELDS)}")
    optional = {name: row[name] for name in ("category", "data_source", "pred") if row.get(name) is not None}
    for name, value in {**{name: row[name] for name in _TEXTS}, **optional}.items():
        if not isinstance(value, str) or (name in ("question", "reference") and not value.strip()):
            raise UserError(f"{where}: {name} is {quoted(value)}, expected a text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {name} holds half of a surrogate pair, which no UTF-8 can hold; remove it")
    if not isinstance(row["correct"], bool):
        raise UserError(f"{where}: correct is {quoted(row['correct'])}, expected true or false")
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise UserError(f"{where}: options is {quoted(options)}, expected a list of texts")
    required = {name: row[name] for name in _FIELDS}
    return LabelledRow(number, **required, **optional, options=tuple(options))


def _response(tokenizer: Any, row: LabelledRow) -> Response:
    reasoning = _CONCLUSION.sub("", row.response).strip()
    chosen = ord(row.pred) - ord("A") if len(row.pred) == 1 else -1
    last_line = reasoning.splitlines()[-1] if reasoning else ""
    answer = row.options[chosen] if 0 <= chosen < len(row.options) else last_line
    text = f"<think> {reasoning} </think> <answer> {answer} </answer>{tokenizer.eos_token}"
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Response(tokens, text, (), "stop", seed=0)
