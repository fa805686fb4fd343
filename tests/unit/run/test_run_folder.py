"""A run folder belongs to one process at a time, and to nobody once that process is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.types import UserError

ROOT = Path(__file__).parents[3]


def test_a_held_folder_is_refused_until_it_is_given_back(tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "run").hold()
    with pytest.raises(UserError, match=rf"run is in use by another run \(process {os.getpid()}\).*trainer\.name"):
        RunFolder(tmp_path / "run").hold()
    RunFolder(tmp_path / "other").hold().close()
    held.close()
    RunFolder(tmp_path / "run").hold().close()


def test_a_killed_holder_gives_the_folder_back(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from megatron_rlpr.run.folder import RunFolder
held = RunFolder(pathlib.Path(sys.argv[1])).hold()
print("held", flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}"):
            RunFolder(tmp_path).hold()
        holder.send_signal(signal.SIGKILL)
    RunFolder(tmp_path).hold().close()
