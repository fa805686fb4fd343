"""When the run validates, and what it makes of the first and the last validation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_rlpr.config.schema import TrainerConfig
from megatron_rlpr.evaluation.accuracy_table import accuracy_rows, accuracy_table
from megatron_rlpr.evaluation.comparison import compare, summary_table, write_summary
from megatron_rlpr.evaluation.held_out import HeldOutEvaluation, ValidationResult, ValidationSet
from megatron_rlpr.evaluation.validation_metrics import validation_metrics
from megatron_rlpr.system import atomic_file
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.process_environment import release_free_memory
from megatron_rlpr.system.step_folders import StepFolders


@dataclass
class ValidationSchedule:
    """Validates before training, every trainer.test_freq steps and after it; compares both ends in summary.json.

    Steps alone decide when. log: takes a step and its metrics, on the first rank. peak_memory_gb: of all ranks,
    asked on every rank. collapse_warnings: of the run so far, for the summary. before: the first validation's results;
    started: the time at which the run began. due: a validation after a step has begun and not ended.
    """

    trainer: TrainerConfig
    total_steps: int
    evaluation: HeldOutEvaluation
    sets: Sequence[ValidationSet]
    log: Callable[[int, Mapping[str, float]], None]
    peak_memory_gb: Callable[[], float]
    summary: Path
    model: str
    collapse_warnings: Callable[[], list[dict[str, Any]]] = list
    before: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    due: bool = False

    def before_training(self, step: int) -> None:
        """Validate the initial policy, unless a resumed run knows that result already; do what a stop broke off.

        With trainer.val_only whatever policy there is, and the accuracies are shown as a table.
        """
        if self.due and not self.trainer.val_only:
            self.after_step(step)
        wanted = self.trainer.val_only or (self.trainer.val_before_train and step == 0)
        if wanted and self.sets:
            self.before = [
                {"name": result.name, "strategy": result.strategy, "per_prompt": result.per_prompt}
                for result in self._validate(step)
            ]

    def after_step(self, step: int) -> None:
        """Validate when it is time; the last step is left to after_training."""
        frequency = self.trainer.test_freq
        if self.sets and frequency > 0 and step % frequency == 0 and step != self.total_steps:
            self.due = True
            self._validate(step)
            self.due = False

    def after_training(self, step: int) -> None:
        """Validate the final policy and write summary.json with both ends."""
        if not self.sets:
            return
        after = self._validate(step)
        memory = self.peak_memory_gb()
        if not self.before or dist.get_rank() != 0:
            return
        pairs = comparable(self.before, after)
        if not pairs:
            other = "no summary: the first validation was of other prompts or strategies than the last"
            return self.evaluation.console.message(other)
        (before, last), *others = pairs
        summary = write_summary(
            self.summary,
            before,
            last.per_prompt,
            steps=step,
            wall_time_s=time.time() - self.started,
            peak_memory_gb=memory,
            model=self.model,
            validation_set=last.name,
            decoding=last.strategy,
            collapse_warnings=self.collapse_warnings(),
            judge={f"{result.name}/{result.strategy}": result.judge for result in after if result.judge},
            other_sets={f"{r.name}/{r.strategy}": compare(first, r.per_prompt) for first, r in others},
        )
        self.evaluation.console.table(summary_table(summary))

    def state_dict(self) -> dict[str, Any]:
        """The first validation's results and the time spent, JSON-serialisable."""
        return {"before": self.before, "elapsed_s": time.time() - self.started, "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self.before = state["before"]
        self.started = time.time() - state["elapsed_s"]
        self.due = state.get("due", False)

    def _validate(self, step: int) -> list[ValidationResult]:
        results = self.evaluation.run(self.sets, step)
        release_free_memory()
        first_rank_decides(lambda: self._record(step, results))
        return results

    def _record(self, step: int, results: Sequence[ValidationResult]) -> None:
        """Write the metrics, and the accuracies beside the answers. For the first rank."""
        self.log(step, validation_metrics(results))
        rows, folder = accuracy_rows(results), StepFolders(self.evaluation.folder).path(step)
        atomic_file.write_text(folder / "accuracies.json", json.dumps(rows, indent=2) + "\n")
        if self.trainer.val_only:
            self.evaluation.console.table(accuracy_table(rows, step, str(folder)))


def comparable(
    before: Sequence[dict[str, Any]], after: Sequence[ValidationResult]
) -> list[tuple[dict[str, list[float]], ValidationResult]]:
    """Every last result with the first one's values of the same set, strategy and number of prompts.

    A run that is resumed may validate on more or fewer sets than it began with.
    """

    def sizes(per_prompt: dict[str, list[float]]) -> set[int]:
        return {len(column) for column in per_prompt.values()}

    values = {(entry["name"], entry["strategy"]): entry["per_prompt"] for entry in before}
    pairs = [(values.get((result.name, result.strategy), {}), result) for result in after]
    return [(first, last) for first, last in pairs if first and sizes(first) == sizes(last.per_prompt)]
