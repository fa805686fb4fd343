"""Every answer of a validation on disk: what a killed validation goes on from, and what a person looks at.

In <run>/validation/step_000040/ a set and strategy has

    <set>.<strategy>.parquet, .csv         all answers, once all prompts are answered and graded
    .<set>.<strategy>.<key>/from_000256.parquet
                                           until then: prompts that are finished, each file whole or absent

The key stands for all that the answers depend on, the weights' checksum first. What has another key is left alone until
the new answers are complete. For one process; `held_out` tells the other ranks what it says.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rlpr.system import atomic_file
from megatron_rlpr.system.quoting import reason
from megatron_rlpr.types import UserError

FORMAT = 1
"""Part of every key: raise it when the same answers would be graded or stored otherwise."""
_KEY, _FAILURES = b"megatron_rlpr.answers", b"megatron_rlpr.failures"
_TEXTS = ("data_source", "prompt", "response", "extracted_answer", "reference_answer")
SCHEMA = pa.schema(
    [
        ("prompt_row", pa.int64()),  # of the validation file
        ("sample", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
        ("accuracy", pa.float64()),
        ("format", pa.float64()),
        ("graded_by", pa.string()),  # rule or judge
        ("no_verdict", pa.string()),  # why the rules reached none
        ("judge_reply", pa.string()),
        ("reward", pa.float64()),  # null: not computed (evaluation.score_reward)
        ("reference_probability", pa.float64()),
        ("response_tokens", pa.int64()),
        ("finish_reason", pa.string()),
    ]
)
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
Failures = dict[str, Counter[str]]
"""Who ("graders", "judge") -> why -> how many answers got no verdict."""


class Answers:
    """The stored answers to one validation set with one strategy after one step."""

    def __init__(self, folder: Path, name: str, made_from: Mapping[str, Any]) -> None:
        """folder: of the step; name: <set>.<strategy>; made_from: JSON, all that the answers depend on."""
        origin = json.dumps({"format": FORMAT, **made_from}, sort_keys=True)
        self.key = hashlib.sha256(origin.encode()).hexdigest()[:16]
        self.table = folder / f"{name}.parquet"
        self.csv = folder / f"{name}.csv"
        self._pieces = folder / f".{name}.{self.key}"

    def finished(self) -> set[int]:
        """Rows of the prompts whose answers are stored."""
        return {row["prompt_row"] for table in self._tables() for row in table.select(["prompt_row"]).to_pylist()}

    def add(self, rows: Sequence[Mapping[str, Any]], failures: Failures) -> None:
        """Store all answers to some more prompts, in one piece. rows: as SCHEMA."""
        first = min(row["prompt_row"] for row in rows)
        self._write(self._pieces / f"from_{first:06d}.parquet", rows, failures)

    def complete(self) -> tuple[list[dict[str, Any]], Failures]:
        """Write the table and its CSV from all pieces; its rows, by prompt and sample, and the failures of all."""
        tables = self._tables()
        failures = _failures(tables)
        rows = sorted((row for table in tables for row in table.to_pylist()), key=_order)
        if not self._is_complete():
            atomic_file.write_text(self.csv, csv_text(rows))
            self._write(self.table, rows, failures)
        shutil.rmtree(self._pieces, ignore_errors=True)
        return rows, failures

    def _tables(self) -> list[pa.Table]:
        if self._is_complete():
            return [_read(self.table)]
        return [_read(path) for path in sorted(self._pieces.glob("from_*.parquet"))]

    def _is_complete(self) -> bool:
        if not self.table.is_file():
            return False
        with _named_if_damaged(self.table):
            return (pq.read_schema(self.table).metadata or {}).get(_KEY) == self.key.encode()

    def _write(self, path: Path, rows: Sequence[Mapping[str, Any]], failures: Failures) -> None:
        metadata = {_KEY: self.key.encode(), _FAILURES: json.dumps(failures).encode()}
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(metadata))
        with atomic_file.replacing(path) as unfinished:
            pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, columns as SCHEMA.

    A text that a spreadsheet would execute as a formula begins with an apostrophe (OWASP, CSV injection).
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(SCHEMA.names)
    writer.writerows([_harmless(row[name]) for name in SCHEMA.names] for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and (value.startswith(_FORMULA_STARTS) or value.lstrip().startswith(_FORMULA_STARTS)):
        return f"'{value}"
    return value


def _order(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["prompt_row"], row["sample"]


def _failures(tables: Sequence[pa.Table]) -> Failures:
    total: Failures = {}
    for table in tables:
        for who, counts in json.loads((table.schema.metadata or {}).get(_FAILURES, b"{}")).items():
            total.setdefault(who, Counter()).update(counts)
    return total


def _read(path: Path) -> pa.Table:
    with _named_if_damaged(path):
        return pq.read_table(path, page_checksum_verification=True)


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: stored answers cannot be read ({reason(error)}); remove the file") from error
