"""What a run's folder says, as far as it can be read; what is missing or broken becomes a note on the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_rlpr.config.yaml import parse_yaml
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system.quoting import reason
from megatron_rlpr.types import UserError
from tools.json_lines import json_lines

_UNREADABLE = (OSError, ValueError, RecursionError)
_LINES_NAMED = 5

Series = dict[int, dict[str, float]]
"""step -> metric -> a finite value"""


@dataclass
class RunRecord:
    """One run. config: section.key -> value. notes: what the page cannot show of it, and why."""

    name: str
    folder: RunFolder
    steps: Series = field(default_factory=dict)
    validations: Series = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def metric(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, of training or of validation."""
        source = self.validations if name.startswith("val") else self.steps
        found = {step: values[name] for step, values in source.items() if name in values}
        return list(found), list(found.values())

    @cached_property
    def metric_names(self) -> list[str]:
        """In the order of the files."""
        records = [*self.steps.values(), *self.validations.values()]
        return list(dict.fromkeys(name for record in records for name in record))


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs in these folders; their names are the folders', longer ones where those are the same.

    Raises UserError for a folder that is not there or that holds nothing of a run.
    """
    folders = list(dict.fromkeys(Path(path).resolve() for path in paths))
    names = [folder.name for folder in folders]
    return [
        _read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_run(path: Path, name: str) -> RunRecord:
    folder = RunFolder(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder, e.g. runs/quickstart")
    parts = (folder.metrics, folder.validations, folder.summary, folder.config, folder.rollouts)
    if not any(part.exists() for part in parts):
        expected = ", ".join(part.name for part in parts)
        raise UserError(f"{path}: holds nothing of a run (expected {expected}); give a folder such as runs/quickstart")
    run = RunRecord(name, folder)
    run.steps = _series(folder.metrics, "no curves of the training", run.notes)
    run.validations = _series(folder.validations, "no curves on held-out questions", run.notes)
    run.summary = _read(folder.summary, "no table of before and after: the run has not ended", run.notes)
    run.config = _flat(_read(folder.config, "no configuration", run.notes))
    return run


def _read(path: Path, loss: str, notes: list[str]) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; empty, with a note, where there is none."""
    if not path.is_file():
        notes.append(f"{path.name} is not there: {loss}")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text, path.name)
        if isinstance(content, dict):
            return content
        problem = "holds no mapping"
    except (*_UNREADABLE, UserError) as error:
        problem = f"cannot be read ({error if isinstance(error, UserError) else reason(error)})"
    notes.append(f"{path.name} {problem}: {loss}")
    return {}


def series(path: Path) -> tuple[Series, list[int]]:
    """The records of metrics.jsonl or validation.jsonl by step, and the lines that are none."""
    records: Series = {}
    bad = []
    for number, record in json_lines(path):
        step = None if isinstance(record, UserError) else record.get("step")
        if isinstance(record, UserError) or type(step) is not int:
            bad.append(number)
            continue
        numbers = {n: float(v) for n, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        records[step] = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return dict(sorted(records.items())), bad


def _series(path: Path, loss: str, notes: list[str]) -> Series:
    if not path.is_file():
        notes.append(f"{path.name} is not there: {loss}")
        return {}
    records, bad = series(path)
    if bad:
        named = ", ".join(map(str, bad[:_LINES_NAMED])) + (", ..." if len(bad) > _LINES_NAMED else "")
        notes.append(f"{path.name}: {len(bad)} lines are no record of a step and are left out (line {named})")
    return records


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, keys in config.items()
        for key, value in (keys.items() if isinstance(keys, dict) else (("", keys),))
    }
