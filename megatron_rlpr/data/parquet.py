"""Reading and checking the reference's parquet schema.

| column | type | use |
|---|---|---|
| prompt | list of {role, content} | fed to the chat template |
| data_source | str | grader dispatch and per-source metrics |
| reward_model | {ground_truth: str, ...} | the reference answer |
| anything else (ability, extra_info, ...) | any | carried in Row.extra |

Every mistake is reported with file, row (counted from 0) and key, before any work is done with the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rlpr.types import UserError

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")


@dataclass(frozen=True)
class Row:
    """One checked row: chat messages, the reference answer verbatim, its source, and all other columns."""

    messages: tuple[dict[str, str], ...]
    reference_answer: str
    data_source: str
    extra: dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """All rows of one parquet file, in file order; raises UserError for a file or a row that breaks the schema."""
    table = _read_table(Path(path))
    missing = [name for name in REQUIRED_COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: column {missing[0]!r} is missing (found: {', '.join(table.column_names) or 'none'}); "
            f"a data file needs the columns {', '.join(REQUIRED_COLUMNS)}"
        )
    records = (record for batch in table.to_batches(max_chunksize=8192) for record in batch.to_pylist())
    return [_row(record, f"{path}, row {number}") for number, record in enumerate(records)]


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path}: no such data file; data.train_files and data.val_files must name parquet files")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); write it with pandas or pyarrow"
        ) from error


def _row(record: dict[str, Any], where: str) -> Row:
    reward_model = record["reward_model"]
    data_source = record["data_source"]
    if not isinstance(data_source, str) or not data_source:
        raise UserError(f"{where}: data_source is {data_source!r}, expected a non-empty text")
    if not isinstance(reward_model, dict):
        raise UserError(f"{where}: reward_model is {reward_model!r}, expected a mapping with ground_truth")
    extra = {name: value for name, value in record.items() if name not in REQUIRED_COLUMNS}
    extra["reward_model"] = {name: value for name, value in reward_model.items() if name != "ground_truth"}
    return Row(_messages(record["prompt"], where), _reference_answer(reward_model, where), data_source, extra)


def _reference_answer(reward_model: dict[str, Any], where: str) -> str:
    answer = reward_model.get("ground_truth")
    if answer is None:
        raise UserError(f"{where}: reward_model.ground_truth is missing; it holds the reference answer")
    if not isinstance(answer, str):
        raise UserError(f"{where}: reward_model.ground_truth is {answer!r}, expected a text; store numbers as text")
    if not answer.strip():
        raise UserError(
            f"{where}: reward_model.ground_truth is empty, there is nothing to score; give an answer or remove the row"
        )
    return answer


def _messages(prompt: Any, where: str) -> tuple[dict[str, str], ...]:
    expected = "expected a non-empty list of chat messages {role, content}"
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: prompt is {prompt!r:.80}, {expected}")
    messages = []
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"{where}: prompt holds {message!r:.80}, {expected} with text in both")
        messages.append({"role": role, "content": content})
    return tuple(messages)
