"""Data files -> the prompts of a run: read, rewrite, template, tokenise, keep the ones that fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_rlpr.data.chat_template import render
from megatron_rlpr.data.parquet import Row, read_rows
from megatron_rlpr.data.prompt_templates import PromptRewrite, keep_messages
from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.types import Prompt, UserError

ROWS_PER_CALL = 4096


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run (or of one validation file), in file order, and how many rows were too long to use."""

    prompts: tuple[Prompt, ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.prompts)


def accept(prompt: Prompt) -> None:
    """Nothing is wrong with the prompt."""


def load_prompts(
    files: Sequence[str | Path],
    tokenizer: Any,
    max_prompt_length: int,
    *,
    overlong: Literal["drop", "refuse"] = "drop",
    rewrite: PromptRewrite = keep_messages,
    limit: int = 0,
    check: Callable[[Prompt], None] = accept,
) -> PromptSet:
    """The rows of all files, concatenated in order, as templated and tokenised prompts.

    Prompt.index is the row number over the concatenated files, dropped rows counted, so it names the same row for any
    max_prompt_length. A row of more than max_prompt_length tokens is dropped and counted (training) or refused with its
    file and row (evaluation: a benchmark must not lose questions silently). limit > 0 keeps only the first rows.
    check may refuse a prompt with a UserError, which gets its file and row.
    """
    prompts: list[Prompt] = []
    dropped = index = 0
    # Python makes a new int for every id that it gets from the tokenizer; shared ones take 8 bytes a token, not 36.
    shared_ids: dict[int, int] = {}
    for file, first_row, rows in _chunks(files, limit):
        conversations = [rewrite(row.messages, file) for row in rows]
        encodings = encode(tokenizer, render(tokenizer, conversations, file, first_row))
        for offset, (row, messages, encoding) in enumerate(zip(rows, conversations, encodings, strict=True)):
            ids, where = encoding.ids, f"{file}, row {first_row + offset}"
            if len(ids) <= max_prompt_length:
                token_ids = tuple(shared_ids.setdefault(i, i) for i in ids)
                prompt = Prompt(index + offset, token_ids, messages, row.reference_answer, row.data_source, row.extra)
                check_at(where, check, prompt)
                prompts.append(prompt)
            elif overlong == "drop":
                dropped += 1
            else:
                raise UserError(
                    f"{where}: the prompt has {len(ids)} tokens, more than the limit of {max_prompt_length}; raise "
                    "data.val_max_prompt_length or remove the row"
                )
        index += len(rows)
    if not prompts:
        too_long = f"all {dropped} rows are longer than {max_prompt_length} tokens"
        reason = too_long if dropped else "the files hold no rows"
        raise UserError(f"no prompt to use in {', '.join(map(str, files)) or 'an empty list of files'}: {reason}")
    return PromptSet(tuple(prompts), dropped)


def samples_per_prompt(name: str | Path) -> int:
    """N of a validation file named *_AvgN (samples per prompt when sampling); 1 when the name has none."""
    match = re.search(r"Avg(\d+)", Path(name).name)
    return max(1, int(match.group(1))) if match else 1


def _chunks(files: Sequence[str | Path], limit: int) -> Iterator[tuple[str | Path, int, list[Row]]]:
    """(file, number of the chunk's first row in it, rows): bounded pieces, so that templated texts stay few."""
    left = limit or None
    for file in files:
        rows = read_rows(file)[:left]
        for start in range(0, len(rows), ROWS_PER_CALL):
            yield file, start, rows[start : start + ROWS_PER_CALL]
        if left is not None:
            left -= len(rows)
            if left == 0:
                return


def check_at(where: str, check: Callable[[Prompt], None], prompt: Prompt) -> None:
    """Let check refuse a prompt; its UserError begins with where."""
    try:
        check(prompt)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
