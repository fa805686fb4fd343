"""Reading and checking the reference's parquet schema.

| column | type | use |
|---|---|---|
| prompt | list of {role, content} | fed to the chat template |
| data_source | str | grader dispatch and per-source metrics |
| reward_model | {ground_truth: str, ...} | the reference answer |
| anything else (ability, extra_info, ...) | any | carried in Row.extra as JSON knows it (`plain`) |

Every mistake is reported with file, row (counted from 0) and key, before any work is done with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rlpr.system.quoting import quoted, reason
from megatron_rlpr.types import UserError

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")
ROWS_PER_BATCH = 8192

_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, pa.ArrowException)
"""What Arrow raises for values that Python has no object for: bad UTF-8, the year 20000, an unknown time zone."""


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
    names = table.column_names
    for name in REQUIRED_COLUMNS:
        if name not in names:
            raise UserError(
                f"{path}: column {name!r} is missing (found: {quoted(', '.join(names)) if names else 'none'}); "
                f"a data file needs the columns {', '.join(REQUIRED_COLUMNS)}"
            )
    for field in table.schema:
        if names.count(field.name) > 1:
            raise UserError(
                f"{path}: there are {names.count(field.name)} columns {quoted(field.name)}; rename or drop one"
            )
        if "time64[ns]" in str(field.type):  # Python's times end at microseconds, and pyarrow cuts the rest off
            raise UserError(
                f"{path}: column {quoted(field.name)} holds times in nanoseconds; cast it to text or drop it"
            )
    return [checked_row(record, f"{path}, row {number}") for number, record in enumerate(_records(table, path))]


def stream_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of any parquet file as Python objects, in file order, a bounded number of them in memory.

    Raises UserError for a file, or a value in it, that cannot be read.
    """
    start = 0
    with _opened(Path(path)) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH // 8):
            yield from _records(pa.Table.from_batches([batch]), path, start)
            start += batch.num_rows


def plain(value: Any) -> Any:
    """A value of a data file as JSON keeps it, NaN and whole numbers of any size included.

    Dates, times, durations, decimals and UUIDs become their text, bytes hexadecimal text, maps lists of pairs.
    Raises TypeError for anything else.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {name: plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta() | Decimal() | UUID():
            return str(value)
        case bytes():
            return value.hex()
    raise TypeError(f"there is no way to store a {type(value).__name__}")


def _read_table(path: Path) -> pa.Table:
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise UserError(f"{path}: no such data file; data.train_files and data.val_files must name parquet files")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (*_UNREADABLE, OSError, MemoryError) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({reason(error)}); write it with pandas or pyarrow"
        ) from error


def _records(table: pa.Table, path: str | Path, start: int = 0) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        columns = [_values(batch.column(name), f"column {quoted(name)}", path, start) for name in batch.schema.names]
        yield from (dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True))
        start += batch.num_rows


def _values(column: pa.Array, name: str, path: str | Path, start: int) -> list[Any]:
    """A column's values as Python objects; start: the row of the file that it begins at."""
    try:
        return column.to_pylist()
    except _UNREADABLE:
        for row, value in enumerate(column, start):
            try:
                value.as_py()
            except _UNREADABLE as error:
                raise UserError(
                    f"{path}, row {row}: {name} of type {quoted(str(column.type))} cannot be read ({reason(error)}); "
                    "texts must be UTF-8; cast what is not needed to text or drop it"
                ) from error
        raise


def checked_row(record: dict[str, Any], where: str) -> Row:
    """A record with the REQUIRED_COLUMNS as a Row. Raises UserError, which begins with where, when it breaks the
    schema."""
    reward_model = record["reward_model"]
    data_source = record["data_source"]
    if not isinstance(data_source, str) or not data_source.strip():
        raise UserError(f"{where}: data_source is {quoted(data_source)}, expected a non-empty text")
    if not isinstance(reward_model, dict):
        raise UserError(f"{where}: reward_model is {quoted(reward_model)}, expected a mapping with ground_truth")
    messages, answer = _messages(record["prompt"], where), _reference_answer(reward_model, where)
    extra = {name: value for name, value in record.items() if name not in REQUIRED_COLUMNS}
    extra["reward_model"] = {name: value for name, value in reward_model.items() if name != "ground_truth"}
    return Row(messages, answer, data_source, {name: _stored(name, extra[name], where) for name in extra})


def _stored(name: str, value: Any, where: str) -> Any:
    try:
        return plain(value)
    except TypeError as error:
        raise UserError(f"{where}: column {quoted(name)}: {error}; cast it to text or drop it") from error


def _reference_answer(reward_model: dict[str, Any], where: str) -> str:
    answer = reward_model.get("ground_truth")
    if answer is None:
        raise UserError(f"{where}: reward_model.ground_truth is missing; it holds the reference answer")
    if not isinstance(answer, str):
        raise UserError(
            f"{where}: reward_model.ground_truth is {quoted(answer)}, expected a text; store numbers as text"
        )
    if not answer.strip():
        raise UserError(
            f"{where}: reward_model.ground_truth is empty, there is nothing to score; give an answer or remove the row"
        )
    return answer


def _messages(prompt: Any, where: str) -> tuple[dict[str, str], ...]:
    expected = "expected a non-empty list of chat messages {role, content}"
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: prompt is {quoted(prompt)}, {expected}")
    messages = []
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"{where}: prompt holds {quoted(message)}, {expected} with text in both")
        messages.append({"role": role, "content": content})
    return tuple(messages)
