"""Rows of others -> one parquet file in the reference's schema, which is whole or absent.

What is written has been read as a run reads it, and every row's grader has called the row's own reference right. Other
rows are bad: they are left out, listed with file and line, and counted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rlpr.data.parquet import REQUIRED_COLUMNS, Row, checked_row, read_rows
from megatron_rlpr.data.prompt_templates import R1_SYSTEM
from megatron_rlpr.data.sources import grader_of
from megatron_rlpr.grading.dispatch import own_answer
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.grading.tasks import prompt_text
from megatron_rlpr.system import atomic_file
from megatron_rlpr.system.sealed_folder import sha256
from megatron_rlpr.types import UserError
from tools.prepare_data.benchmarks import Convert, Question, Split
from tools.prepare_data.foreign_rows import PlacedRow, count_rows, rows

ROWS_AT_ONCE = 1024
TIME_LIMIT_S = 60.0
"""Of one grade: nobody waits for these, and a busy machine must not make a row bad."""
FORMAT = 1
"""Part of what a file was made from: raise it when the same inputs would give other rows."""
_MADE_FROM = b"megatron_rlpr.made_from"
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("source", pa.string())])),
    ]
)

ToRecord = Callable[[dict[str, Any], str], dict[str, Any] | None]
"""A row's fields and its place -> a record of the schema; None: left out. Raises UserError for a bad row."""


@dataclass
class Outcome:
    """What became of the rows, in numbers. made: False when the file was there already."""

    written: int = 0
    left_out: int = 0
    bad: int = 0
    made: bool = True


def question_record(question: Question, data_source: str, split: Split, where: str) -> dict[str, Any]:
    """One record of SCHEMA, not numbered yet: the reference's system message and the question."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "system", "content": R1_SYSTEM}, {"role": "user", "content": question.text}],
        "ability": question.subject,
        "reward_model": {"ground_truth": question.answer, "style": "rule"},
        "extra_info": {"split": split, "source": where},
    }


def converted(convert: Convert, data_source: str, split: Split) -> ToRecord:
    """Makes records of a data set's rows."""

    def record(fields: dict[str, Any], where: str) -> dict[str, Any] | None:
        question = convert(fields)
        return None if question is None else question_record(question, data_source, split, Path(where).name)

    return record


def released(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """A row that is in the schema already, with all its columns."""
    missing = [name for name in REQUIRED_COLUMNS if name not in fields]
    if missing:
        raise UserError(f"column {missing[0]!r} is missing; the release's files have {', '.join(REQUIRED_COLUMNS)}")
    return fields


def convert_files(
    inputs: Sequence[Path],
    target: Path,
    to_record: ToRecord,
    split: Split,
    *,
    made_from: Mapping[str, Any],
    schema: pa.Schema = SCHEMA,
    draw: int = 0,
    seed: int = 0,
    strict: bool = False,
    on_bad: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Write target from the rows of all inputs. draw: so many of them, drawn with seed, in file order; 0: all.

    made_from: what else the rows depend on. A target that was made from the same is kept. on_bad gets a line for every
    bad row, with its place; progress is told how many of how many rows have been read. Raises UserError when another
    file is in the way, when no row is good, and with strict when one is bad; then nothing is written.
    """
    sums = [sha256(path) for path in inputs]
    origin = {**made_from, "format": FORMAT, "files": sums, "split": split, "draw": draw, "seed": seed}
    if _is_made(target, origin):
        return Outcome(written=int(pq.read_metadata(target).num_rows), made=False)
    total = sum(map(count_rows, inputs))
    chosen = set(random.Random(seed).sample(range(total), draw)) if 0 < draw < total else None
    outcome = Outcome()
    numbered = schema is SCHEMA  # the release's rows have numbers of their own
    schema = schema.with_metadata({**(schema.metadata or {}), _MADE_FROM: json.dumps(origin).encode()})
    with atomic_file.replacing(target) as unfinished, closing(GraderPool(timeout_s=TIME_LIMIT_S)) as graders:
        with pq.ParquetWriter(unfinished, schema, compression="zstd", write_page_checksum=True) as writer:
            for done, chunk in _chunks(inputs, chosen):
                good, bad = _good_records(chunk, to_record, split, graders, outcome)
                for index, record in enumerate(good if numbered else (), outcome.written):
                    record["extra_info"]["index"] = index
                outcome.written, outcome.bad = outcome.written + len(good), outcome.bad + len(bad)
                for line in bad:
                    on_bad(line)
                if good:
                    writer.write_table(pa.Table.from_pylist(good, schema=schema))
                progress(done, total)
        if not outcome.written:
            raise UserError(f"{target}: there is no row to write; of {total} rows, {outcome.bad} are bad")
        if strict and outcome.bad:
            raise UserError(f"{target}: not written, --strict refuses its {outcome.bad} bad rows")
        assert len(read_rows(unfinished)) == outcome.written
    return outcome


def _is_made(target: Path, origin: Mapping[str, Any]) -> bool:
    if not target.exists():
        return False
    try:
        before = (pq.read_schema(target).metadata or {}).get(_MADE_FROM, b"")
    except (pa.ArrowException, OSError):
        before = b""
    if before == json.dumps(origin).encode():
        return True
    raise UserError(
        f"{target}: is there already and was made from other files or arguments; remove it, or choose another --name "
        "or --out"
    )


def _chunks(inputs: Sequence[Path], chosen: set[int] | None) -> Iterator[tuple[int, list[PlacedRow]]]:
    """(rows read so far, those of them that are wanted since the last chunk)."""
    numbered: Iterable[tuple[int, PlacedRow]] = enumerate(row for path in inputs for row in rows(path))
    while chunk := list(islice(numbered, ROWS_AT_ONCE)):
        yield chunk[-1][0] + 1, [row for number, row in chunk if chosen is None or number in chosen]


def _good_records(
    chunk: Sequence[PlacedRow], to_record: ToRecord, split: Split, graders: GraderPool, outcome: Outcome
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records to write, and a line for every bad row."""
    candidates: list[tuple[str, dict[str, Any], GradeTask]] = []
    good: list[dict[str, Any]] = []
    bad: list[str] = []
    for where, fields in chunk:
        try:
            if isinstance(fields, UserError):
                raise fields
            record = to_record(fields, where)
            if record is None:
                outcome.left_out += 1
            else:
                candidates.append((where, record, _own_task(checked_row(record, ""), split)))
        except UserError as error:
            bad.append(f"{where}: {str(error).removeprefix(': ')}")
    verdicts = _verdicts([task for _, _, task in candidates], graders)
    for (where, record, task), verdict in zip(candidates, verdicts, strict=True):
        if verdict.accuracy == 1.0:
            good.append(record)
        else:
            read = f"it reads {verdict.extracted!r:.100}" if not verdict.reason else verdict.reason
            bad.append(
                f"{where}: the grader of {task.data_source} does not call the reference answer "
                f"{task.reference_answer!r:.100} right ({read})"
            )
    return good, bad


def _verdicts(tasks: Sequence[GradeTask], graders: GraderPool) -> list[GradeResult]:
    """What the graders say; those that reach no verdict in time, on a machine that is busy, are asked once more."""
    verdicts = graders.grade_many(tasks)
    again = [number for number, verdict in enumerate(verdicts) if verdict.reason]
    for number, verdict in zip(again, graders.grade_many([tasks[number] for number in again]), strict=True):
        verdicts[number] = verdict
    return verdicts


def _own_task(row: Row, split: Split) -> GradeTask:
    """Asks a row's grader about the row's own reference. Raises UserError where nobody grades its source."""
    grader_of(row.data_source)
    answer = row.reference_answer
    return GradeTask(
        row.data_source,
        own_answer(row.data_source, answer),
        answer,
        prompt_text(row.messages),
        "train" if split == "train" else "validation",
    )
