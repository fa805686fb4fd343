"""Rows of files that others made, one at a time, each with its place: JSON Lines and parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from megatron_rlpr.data.parquet import stream_records
from megatron_rlpr.system.quoting import quoted
from megatron_rlpr.types import UserError
from tools.json_lines import json_lines

PlacedRow = tuple[str, dict[str, Any] | UserError]
"""Where a row stands ("q.jsonl, line 3", lines counted from 1, or "q.parquet, row 0", rows from 0), and its fields, or
what is wrong with it."""


def input_files(inputs: list[Path]) -> list[Path]:
    """The files named, and of every folder named its parquet and jsonl files. Raises UserError where there are none."""
    found: list[Path] = []
    for path in inputs:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".jsonl"))
            if not files:
                raise UserError(f"--input {path}: the folder holds no .parquet and no .jsonl file")
        for file in files:
            if file.suffix not in (".parquet", ".jsonl"):
                raise UserError(f"--input {file}: expected a file whose name ends in .jsonl or .parquet")
            if not file.is_file():
                raise UserError(f"--input {file}: there is no such file")
        found += files
    return found


def count_rows(path: Path) -> int:
    """How many rows `rows` gives."""
    if path.suffix == ".parquet":
        next(stream_records(path), None)  # refuses a file that is none
        return int(pq.read_metadata(path).num_rows)
    with path.open("rb") as file:
        return sum(not line.isspace() for line in file)


def rows(path: Path) -> Iterator[PlacedRow]:
    """Every row of a file, in file order; blank lines are none."""
    if path.suffix == ".parquet":
        for number, record in enumerate(stream_records(path)):
            yield f"{path}, row {number}", record
        return
    for number, found in json_lines(path):
        yield f"{path}, line {number}", found


def field(record: Mapping[str, Any], name: str) -> Any:
    """A field's value; UserError when there is none."""
    value = record.get(name)
    if value is None:
        raise UserError(f"field {name!r} is missing (found: {quoted(', '.join(map(str, record)))})")
    return value


def text_field(record: Mapping[str, Any], name: str) -> str:
    """A field's text without outer white space; UserError for anything else and for an empty one."""
    value = field(record, name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field {name!r} is {quoted(value)}, expected a text")
    return value.strip()
