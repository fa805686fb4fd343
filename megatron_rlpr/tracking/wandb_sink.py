"""Weights & Biases: one run there for one run folder here, also after a resume."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rlpr.system import atomic_file
from megatron_rlpr.types import UserError

RUN_ID_FILE = "wandb_run_id"

_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
_NOT_IN_A_PROJECT = r"/\#?%:"
_LONGEST_PROJECT = 128


def wanted(by_config: bool) -> bool:
    """tracking.wandb, or USE_WANDB=true in the environment. Raises UserError for another value of USE_WANDB."""
    value = os.environ.get("USE_WANDB", "").strip().lower()
    if value not in ("", "true", "1", "false", "0"):
        raise UserError(f"USE_WANDB={os.environ['USE_WANDB']}: expected true or false")
    return by_config or value in ("true", "1")


def check(project: str) -> None:
    """Raise UserError for a project or a WANDB_MODE that wandb would refuse when the run starts."""
    bad = sorted({character for character in project if character in _NOT_IN_A_PROJECT})
    if bad or not 1 <= len(project) <= _LONGEST_PROJECT:
        allowed = f"expected 1 to {_LONGEST_PROJECT} characters, none of {' '.join(_NOT_IN_A_PROJECT)}"
        raise UserError(f"tracking.wandb_project={project!r:.200}: {allowed}")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in _MODES:
        raise UserError(f"WANDB_MODE={mode}: expected one of {', '.join(_MODES)}")


class WandbSink:
    """Sends metrics to Weights & Biases. WANDB_MODE=offline writes them below the run folder and needs no network.

    The run's id is kept in <run_folder>/wandb_run_id and used again when fresh is False. wandb takes its API key from
    the environment or its own login file; nothing here reads or writes it. Console output, code, the git remote and the
    machine's description are not uploaded.
    """

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any], fresh: bool) -> None:
        # What wandb's import leaves behind goes with `close`.
        self._temporary = tempfile.TemporaryDirectory(prefix="megatron_rlpr_wandb_")
        if sys.modules.get("wandb", wanted) is None:
            del sys.modules["wandb"]  # see system.process_environment
        before, tempfile.tempdir = tempfile.tempdir, self._temporary.name
        try:
            import wandb
            from pydantic import ValidationError
        except ImportError as error:
            raise UserError("tracking.wandb=true needs the package wandb: pip install wandb, or unset it") from error
        finally:
            tempfile.tempdir = before
        folder.mkdir(parents=True, exist_ok=True)
        on: dict[str, Any] = dict.fromkeys(
            ("disable_git", "disable_code", "x_disable_meta", "x_disable_stats", "silent"), True
        )
        run: dict[str, Any] = {"project": project, "name": name, "dir": str(folder), "config": dict(config)}
        try:
            settings = wandb.Settings(console="off", save_code=False, **on)
            self._run = wandb.init(**run, id=self._run_id(folder, fresh), resume="allow", settings=settings)
        except ValidationError as error:  # a setting that wandb takes from the environment; its value may be secret
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise UserError(
                f"Weights & Biases cannot start ({'; '.join(faults)}): correct the WANDB_* variable"
            ) from None
        except (wandb.errors.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"Weights & Biases cannot start ({reason}): log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        # Steps are a metric of their own: wandb's internal counter refuses the steps a resumed run writes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()
        self._temporary.cleanup()

    def _run_id(self, run_folder: Path, fresh: bool) -> str:
        path = run_folder / RUN_ID_FILE
        if path.exists() and not fresh:
            stored = path.read_text(encoding="utf-8").strip()
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", stored):
                raise UserError(f"{path} holds no Weights & Biases run id: remove the file to start a new run there")
            return stored
        run_id = secrets.token_hex(4)
        atomic_file.write_text(path, run_id + "\n")
        return run_id
