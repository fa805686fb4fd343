"""What the training loop tells its numbers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_rlpr.config.schema import Config
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system.disk import writing
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.metrics_log import MetricsLog, plain_number
from megatron_rlpr.tracking.tensorboard_sink import TensorBoardSink
from megatron_rlpr.tracking.wandb_sink import WandbSink, wanted


class Tracker:
    """Sends every step's metrics to the console, metrics.jsonl, Weights & Biases and TensorBoard; the first rank only.

    resolved_config: `config.loading.resolved(config)`, shown in Weights & Biases. resume_step: the step the run goes on
    after, 0 for a new run; what was logged for later steps is dropped. total_steps: for the time left.
    `console` can be used on every rank; other ranks write nothing.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        resolved_config: Mapping[str, Any],
        resume_step: int = 0,
        *,
        total_steps: int = 0,
        rank: int = 0,
        console: Console | None = None,
    ) -> None:
        self.console = console if console is not None else Console(config.tracking.progress, rank)
        self.total_steps = total_steps or config.trainer.total_training_steps
        self._folder = folder.path
        self._logs: list[MetricsLog] = []
        self._sinks: list[WandbSink | TensorBoardSink] = []
        if rank != 0:
            return
        with writing(folder.path):
            if wanted(config.tracking.wandb):
                project, name = config.tracking.wandb_project, config.trainer.name
                self._sinks.append(WandbSink(project, name, folder.path, resolved_config, fresh=resume_step == 0))
            if config.tracking.tensorboard:
                self._sinks.append(TensorBoardSink(folder.tensorboard, resume_step))
            self._logs = [MetricsLog(path, resume_step) for path in (folder.metrics, folder.validations, folder.phases)]

    def log_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record a finished training step: names as in `metric_names`, values int, float or None."""
        if self._logs:
            self._logs[0].append(step, metrics)
        self._send(step, metrics)
        self.console.step(step, self.total_steps, metrics)

    def log_phases(self, step: int, phases: Sequence[str]) -> None:
        """Record what began since the step before, in order (`system.clock`)."""
        if self._logs:
            self._logs[2].append(step, {"phases": list(phases)})

    def log_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record a validation of the weights after `step` (0: the initial ones): names val/<set>/<strategy>/<measure>.

        A validation that is done again (the first one of a run that is started again, the last one of a finished run)
        takes the place of its earlier record.
        """
        if self._logs:
            self._logs[1].replace(step, metrics)
        self._send(step, metrics)
        self.console.evaluation(step, metrics)

    def close(self) -> None:
        """Flush and close everything; once is enough, twice is allowed."""
        with writing(self._folder):
            for log in self._logs:
                log.close()
            while self._sinks:
                self._sinks.pop().close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, step: int, metrics: Mapping[str, Any]) -> None:
        plain = {name: plain_number(value) for name, value in metrics.items() if name != "step"}
        finite = {name: float(value) for name, value in plain.items() if isinstance(value, int | float)}
        for sink in self._sinks:
            with writing(self._folder):
                sink.log(step, finite)
