"""Which responses are right: as the run graded them, or by the rules of their data source where it did not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.data.sources import grader_of
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.manager import asks_for_grade
from megatron_rlpr.types import Prompt, Response, UserError
from tools.report.run_record import RunRecord


def correctness(run: RunRecord, rows: Sequence[dict[str, Any]]) -> list[bool | None]:
    """One a row; None where nobody can tell: no grader for the data source, or no verdict in time.

    Without the run's configuration and tokenizer it is None for all, and the run's notes say why.
    """
    if not rows:
        return []
    try:
        config = load_config([f"--config={run.folder.config}"])
        tasks = GradeTasks(SpecialTokens.of(load_tokenizer(config.model.path)), config.reward.format_mode)
    except UserError as error:
        run.notes.append(f"which responses are right is not known: {error}")
        return [None] * len(rows)
    sources = {row["data_source"] for row in rows}
    by_run = {source for source in sources if asks_for_grade(config.reward, source)}
    by_rules = {source for source in sources - by_run if _has_grader(source, run)}
    asked = [number for number, row in enumerate(rows) if row["data_source"] in by_rules]
    pool = GraderPool()
    try:
        results = pool.grade_many([tasks.task(*_records(rows[number]), "train") for number in asked])
    finally:
        pool.close()
    verdicts = {n: None if r.reason else r.accuracy > 0 for n, r in zip(asked, results, strict=True)}
    return [
        row["accuracy"] > 0 if row["data_source"] in by_run else verdicts.get(number) for number, row in enumerate(rows)
    ]


def _has_grader(source: str, run: RunRecord) -> bool:
    try:
        grader_of(source)
    except UserError as error:
        run.notes.append(str(error))
        return False
    return True


def _records(row: dict[str, Any]) -> tuple[Prompt, Response]:
    messages = tuple(json.loads(row["messages"]))
    prompt = Prompt(row["prompt_index"], (), messages, row["reference_answer"], row["data_source"])
    return prompt, Response((), row["response"], (), row["finish_reason"], 0)
