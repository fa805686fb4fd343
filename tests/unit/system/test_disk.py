"""What a file system refuses is one line with place, cause and fix, whoever writes, and nothing half-written stays."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from megatron_rlpr.config.schema import Config
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system import disk
from megatron_rlpr.system.atomic_file import write_text
from megatron_rlpr.system.command_line import exit_status
from megatron_rlpr.system.sealed_folder import make_once
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.types import UserError
from tools.prepare_data import __main__ as prepare_data

ROOT = Path(__file__).parents[3]
LOGS = ("metrics.jsonl", "validation.jsonl", "phases.jsonl")
LONG = "x" * 40_000


@contextmanager
def files_up_to(nbytes: int) -> Iterator[None]:
    """No file may grow larger (EFBIG), as under `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def a_text(folder: Path) -> None:
    write_text(folder / "text", LONG)


def metrics(folder: Path) -> None:
    """Closing them meets the full disk once more."""
    config = Config()
    config.tracking.tensorboard = False
    with Tracker(config, RunFolder(folder), {}) as tracker:
        tracker.log_step(1, {"name": LONG})


def a_step(folder: Path) -> None:
    steps = StepFolders(folder)
    with steps.writing(1):
        steps.begin(1).mkdir()
        (steps.unfinished(1) / "weights").write_text(LONG)
        steps.finish(1)


def torchs_writer(folder: Path) -> None:
    steps = StepFolders(folder, ".pt")
    with steps.writing(1):
        torch.save(torch.zeros(20_000), steps.begin(1))
        steps.finish(1)


def a_sealed_folder(folder: Path) -> None:
    make_once(folder / "out", {}, lambda staging: (staging / "file").write_text(LONG) and None)


WRITERS = [a_text, metrics, a_step, torchs_writer, a_sealed_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_may_not_grow(write: Callable[[Path], None], tmp_path: Path) -> None:
    with files_up_to(10_000), pytest.raises(UserError, match=r"ulimit -f") as refused:
        write(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    left = [path.name for path in tmp_path.iterdir() if path.name not in (*LOGS, ".out.lock")]
    assert left == [], "nothing half-written stays"
    write(tmp_path)


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_below_a_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file.*: (Not a directory|File exists); .*choose another"):
        write(tmp_path / "file" / "runs")


FULL = """
import sys
from pathlib import Path
from test_disk import WRITERS
from megatron_rlpr.types import UserError
for write in WRITERS:
    try:
        write(Path(sys.argv[1]))
    except UserError as error:
        print(error)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 16 KiB, in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size=16k none {tmp_path} || exit 77"
    command = ["unshare", "-rm", "sh", "-c", f'{mount}; exec "$@"', "sh", sys.executable, "-c", FULL, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/unit'}:{Path(__file__).parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    lines = done.stdout.splitlines()
    assert len(lines) == len(WRITERS), done.stderr
    for line in lines:
        assert line.startswith(str(tmp_path))
        assert "No space left on device; free space there, then run the same command again" in line


def test_a_tool_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_up_to(2_000):
        assert prepare_data.main(["quickstart", "--out", str(tmp_path / "data"), "--train", "8", "--val", "8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'data'}")
    assert error.count("\n") == 1
    assert "File too large" in error
    assert [path.name for path in tmp_path.iterdir()] == [".data.lock"]


def test_any_refusal_with_a_name_is_a_users_mistake_and_other_errors_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: RunFolder(tmp_path / ("x" * 300)).hold().close()) == 2
    assert "File name too long; choose a shorter name" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        exit_status(lambda: (tmp_path / "missing").read_text() and None)


def test_room_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    disk.require_room(tmp_path / "not" / "there" / "yet", 1, "a checkpoint")
    with pytest.raises(UserError, match=r"runs: a checkpoint needs 1e\+12 GB, .* GB are free; free space there"):
        disk.require_room(tmp_path / "runs", 10**21, "a checkpoint")
