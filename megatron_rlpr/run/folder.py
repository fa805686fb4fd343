"""What lies where in the folder of a run, and who may write there."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from megatron_rlpr.types import UserError

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunFolder:
    """<trainer.runs_dir>/<trainer.name>."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration, which --config reads back
        self.configs = path / "configs"  # step_000003.yaml: the one that the run went on with after step 3
        self.checkpoints = path / "checkpoints"
        self.hf = path / "hf"  # Hugging Face folders, one beside each checkpoint
        self.rollouts = path / "rollouts"
        self.metrics = path / "metrics.jsonl"
        self.phases = path / "phases.jsonl"  # what began when in every step, where memory moves between phases
        self.validations = path / "validation.jsonl"
        self.answers = path / "validation"  # step_000040/: every answer of a validation, see evaluation.answers
        self.summary = path / "summary.json"  # the first validation against the last one
        self.tensorboard = path / "tensorboard"
        self.shared_base_probabilities = path.parent / "base_probabilities"  # of all runs that name no other place
        self.judge_answers = path / "judge_answers"  # the judge's replies, where evaluation.judge_cache names no folder

    def base_probabilities(self, prompt_set: str) -> Path:
        """The initial policy's base probabilities of a prompt set."""
        return self.path / f"base_probability_{prompt_set}.json"

    def hold(self) -> IO[str]:
        """Take the folder until the returned file is closed; the kernel gives it back when this process ends in any
        way.

        Two runs would overwrite each other's checkpoints and logs. Raises UserError while another process holds it. On
        a file system without locks nothing is checked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return file
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"{self.path} is in use by another run (process {holder}): wait until it ends, stop it, or choose "
                "another trainer.name"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file
