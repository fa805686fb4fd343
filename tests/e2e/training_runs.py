"""Start trainings as a user does or in warm processes, output to a file, a time limit always; read what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import warm_start

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("tiny.yaml")
STEPS = 6
LAST_RESORT_S = 1500
"""What takes so long hangs, however busy the machine is."""
AT_ONCE = 2
"""Trainings side by side: what starts in one process is work for one core."""
MEASURED = ("time/", "tokens/s", "memory/")
"""Starts of the metrics that no two runs share."""


@dataclass(frozen=True)
class Workplace:
    """A model, its data and a folder for runs of so many steps."""

    folder: Path
    steps: int = STEPS

    @property
    def arguments(self) -> list[str]:
        """The recipe with this workplace's model, data and runs."""
        return [
            f"--config={RECIPE}",
            f"model.path={self.folder / 'model'}",
            f"data.train_files=[{self.folder / 'train.parquet'}]",
            f"data.val_files=[{self.folder / 'val.parquet'}]",
            f"trainer.runs_dir={self.folder / 'runs'}",
            f"trainer.total_training_steps={self.steps}",
        ]

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The lines of a run's metrics.jsonl."""
        return records(self.run_folder(name) / "metrics.jsonl")

    def validations(self, name: str) -> list[dict[str, Any]]:
        """The lines of a run's validation.jsonl."""
        return records(self.run_folder(name) / "validation.jsonl")

    def timeless(self, name: str) -> list[dict[str, Any]]:
        """A run's metrics without those that depend on the machine: what the same steps must give again."""
        return [
            {key: value for key, value in step.items() if not key.startswith(MEASURED)} for step in self.metrics(name)
        ]

    def checkpoints(self, name: str) -> list[str]:
        """What lies in a run's checkpoint folder, unfinished ones included."""
        folder = self.run_folder(name) / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def train(self, name: str, ranks: int, *overrides: str, **environment: str) -> str:
        """A whole training in warm processes (warm_start.py); returns its output and fails with it when the exit
        status is not 0."""
        status, output = self.start_warm(name, ranks, *overrides, **environment)
        assert status == 0, output[-4000:]
        return output

    def train_all(self, trainings: Mapping[str, tuple[int, Sequence[str]]]) -> None:
        """Several whole trainings, a few at once: ranks and overrides by name."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            started = [threads.submit(self.train, name, ranks, *keys) for name, (ranks, keys) in trainings.items()]
            for one in started:
                one.result()

    def start(
        self,
        name: str,
        ranks: int,
        *overrides: str,
        stop_when: Callable[[], bool] | None = None,
        stop_with: signal.Signals = signal.SIGKILL,
        **environment: str,
    ) -> tuple[int, str]:
        """Run as a user does, in a new process, until it ends, or until stop_when holds: then it is signalled (see
        `run`). ranks=0: without torchrun."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
        command = [sys.executable, *torchrun, "pretrain_rlpr.py", *self._of_run(name, overrides)]
        return run(command, self.folder / f"{name}.log", stop_when, stop_with, **environment)

    def start_warm(
        self,
        name: str,
        ranks: int,
        *overrides: str,
        kill_when: Callable[[], bool] | None = None,
        ray_workers: bool = False,
        **environment: str,
    ) -> tuple[int, str]:
        """As `start`, in warm processes; the signal is SIGKILL, to the first rank. ray_workers: see warm_start.py."""
        arguments, log = self._of_run(name, overrides), self.folder / f"{name}.log"
        ranks_of_it = warm_start.start("pretrain_rlpr.py", arguments, log, ranks, environment, ray_workers)
        return _until_the_end(ranks_of_it.processes[0], ranks_of_it.poll, log, kill_when, signal.SIGKILL)

    def _of_run(self, name: str, overrides: Sequence[str]) -> list[str]:
        return [*self.arguments, f"trainer.name={name}", *overrides]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    command: list[str],
    log: Path,
    stop_when: Callable[[], bool] | None = None,
    stop_with: signal.Signals = signal.SIGKILL,
    **environment: str,
) -> tuple[int, str]:
    """Exit status and output of a command; output goes to a file, which no helper process can hold open for us.

    When stop_when holds, the started process alone gets the signal: a torchrun, if it is one. Fails when a process that
    it started lives on.
    """
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=everything
        )
    return _until_the_end(process.pid, process.poll, log, stop_when, stop_with)


def _until_the_end(
    process: int,
    poll: Callable[[], int | None],
    log: Path,
    stop_when: Callable[[], bool] | None,
    stop_with: signal.Signals,
) -> tuple[int, str]:
    deadline = time.monotonic() + LAST_RESORT_S
    while poll() is None and time.monotonic() < deadline and not (stop_when and stop_when()):
        time.sleep(0.005)
    in_time = time.monotonic() < deadline
    survivors = _stopped(process, poll, stop_with if in_time else signal.SIGKILL) if poll() is None else []
    output = log.read_text(errors="replace")
    assert in_time, f"no end within {LAST_RESORT_S} s: {output[-4000:]}"
    assert not survivors, f"{survivors} outlived the process that had started them"
    status = poll()
    assert status is not None
    return status, output


def _stopped(process: int, poll: Callable[[], int | None], number: signal.Signals) -> list[str]:
    """Stop a process; the command lines of those of its descendants that lived on, which are killed too."""
    family = psutil.Process(process).children(recursive=True)
    os.kill(process, number)
    deadline = time.monotonic() + LAST_RESORT_S
    while poll() is None:
        assert time.monotonic() < deadline, f"no end within {LAST_RESORT_S} s of {number.name}"
        time.sleep(0.005)
    _, alive = psutil.wait_procs(family, timeout=300)
    survivors = [" ".join(member.cmdline())[:200] for member in alive]
    for member in alive:
        member.kill()
    return survivors
