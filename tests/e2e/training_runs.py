"""Start trainings as a user does: torchrun in a process of its own, output to a file, a time limit always."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("tiny.yaml")
STEPS = 6
TIME_LIMIT_S = 240


@dataclass(frozen=True)
class Workplace:
    """A model, its data and a folder for runs."""

    folder: Path

    @property
    def arguments(self) -> list[str]:
        """The recipe with this workplace's model, data and runs."""
        return [
            f"--config={RECIPE}",
            f"model.path={self.folder / 'model'}",
            f"data.train_files=[{self.folder / 'train.parquet'}]",
            f"data.val_files=[{self.folder / 'val.parquet'}]",
            f"trainer.runs_dir={self.folder / 'runs'}",
            f"trainer.total_training_steps={STEPS}",
        ]

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The lines of a run's metrics.jsonl."""
        return [json.loads(line) for line in (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()]

    def train(self, name: str, ranks: int, *overrides: str) -> str:
        """A whole training; returns its output and fails with it when the exit status is not 0."""
        status, output = self.start(name, ranks, *overrides)
        assert status == 0, output[-4000:]
        return output

    def start(self, name: str, ranks: int, *overrides: str, stop_when: Callable[[], bool] | None = None) -> tuple[int, str]:
        """Run until it ends, or until stop_when holds: then every process of it gets SIGKILL. Returns status and output."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(_free_port())]
        command = [*launcher, "pretrain_rlpr.py"] if ranks > 1 else [sys.executable, "pretrain_rlpr.py"]
        return run([*command, *self.arguments, f"trainer.name={name}", *overrides], self.folder / f"{name}.log", stop_when)


def run(command: list[str], log: Path, stop_when: Callable[[], bool] | None = None) -> tuple[int, str]:
    """Exit status and output of a command; output goes to a file, which no helper process can hold open for us."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    deadline = time.monotonic() + TIME_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline and not (stop_when and stop_when()):
        time.sleep(0.02)
    killed = process.poll() is None
    if killed:
        _kill_everything(process.pid)
    status = process.wait()
    assert not killed or stop_when is not None, f"no end within {TIME_LIMIT_S} s: {log.read_text(errors='replace')[-4000:]}"
    return status, log.read_text(errors="replace")


def _kill_everything(session: int) -> None:
    """SIGKILL to a whole session: torchrun gives its workers process groups of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
