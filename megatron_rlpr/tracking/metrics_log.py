"""metrics.jsonl: one JSON object a step, written at once, cut back to the resumed step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from megatron_rlpr.system import atomic_file
from megatron_rlpr.system.disk import writing
from megatron_rlpr.types import UserError


class MetricsLog:
    """Appends records to a file.

    resume_step: the run goes on after this step (0: a new run); records of later steps are removed first, atomically,
    so that the file of a resumed run equals that of one which never stopped. A last line that a kill cut short is
    removed too; any other line that is not a record is an error.
    """

    def __init__(self, path: str | Path, resume_step: int = 0) -> None:
        self.path = Path(path)
        with writing(self.path):
            self._cut_back(resume_step)
            self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one record, step first, and flush it. Numbers that are not finite become null."""
        record = {"step": step, **{name: plain_number(value) for name, value in metrics.items() if name != "step"}}
        with writing(self.path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()

    def replace(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the record of a step that may have been recorded before, for work that a resumed run does again."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] != step]
        if kept != lines:
            self._file.close()
            atomic_file.write_text(self.path, "".join(kept))
            self._file = self.path.open("a", encoding="utf-8")
        self.append(step, metrics)

    def close(self) -> None:
        self._file.close()

    def _cut_back(self, resume_step: int) -> None:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if self._belongs(line, number, len(lines), resume_step)]
        if kept != lines:
            atomic_file.write_text(self.path, "".join(kept))

    def _belongs(self, line: str, number: int, last: int, resume_step: int) -> bool:
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            step = None
        if type(step) is int and line.endswith("\n"):
            return step <= resume_step
        if number == last:
            return False
        raise UserError(
            f"{self.path}, line {number}: expected a JSON object with a whole number 'step'; remove the line or the "
            "file"
        )


def plain_number(value: Any) -> Any:
    """A value as JSON holds it: numpy and torch scalars become int or float, what is not finite becomes None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
