"""A step is there as a whole or not at all, and only as many stay as are wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_rlpr.system.step_folders import StepFolders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(steps: StepFolders, step: int, text: str = "new") -> Path:
    unfinished = steps.begin(step)
    if unfinished.suffix:
        unfinished.write_text(text)
    else:
        (unfinished / "inner").mkdir(parents=True)
        (unfinished / "inner" / "file").write_text(text)
    return steps.finish(step)


@pytest.fixture(params=["", ".parquet"], ids=["folders", "files"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_step_appears_when_it_is_finished_and_replaces_what_was_there(tmp_path: Path, suffix: str) -> None:
    steps = StepFolders(tmp_path / "made", suffix)
    assert steps.steps() == []
    assert write(steps, 40, "old") == tmp_path / "made" / f"step_000040{suffix}"
    write(steps, 1234567)
    write(steps, 40, "new")
    assert steps.steps() == [40, 1234567]
    assert names(tmp_path / "made") == [f"step_000040{suffix}", f"step_1234567{suffix}"]
    written = steps.path(40) if suffix else steps.path(40) / "inner" / "file"
    assert written.read_text() == "new"


def test_what_a_kill_left_is_no_step_and_goes_with_the_next_write(tmp_path: Path, suffix: str) -> None:
    steps = StepFolders(tmp_path, suffix)
    write(steps, 1)
    for left in (steps.begin(2), tmp_path / ".partial_step_000003"):
        left.mkdir()
    assert steps.steps() == [1]
    write(steps, 2)
    assert names(tmp_path) == [f"step_000001{suffix}", f"step_000002{suffix}"]


def test_the_last_ones_up_to_the_finished_step_are_kept(tmp_path: Path, suffix: str) -> None:
    for step in (1, 2, 3, 9):
        write(StepFolders(tmp_path, suffix), step)
    steps = StepFolders(tmp_path, suffix, keep_last=2)
    write(steps, 4)
    assert steps.steps() == [3, 4, 9]
    write(steps, 3)
    assert steps.steps() == [3, 4, 9], "a step that is made again does not go because of later ones"


def test_a_kill_while_a_step_is_removed_leaves_no_part_of_it_as_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = StepFolders(tmp_path, keep_last=1)
    write(steps, 1)

    def killed(folder: Path, ignore_errors: bool) -> None:
        (folder / "inner" / "file").unlink()
        raise KeyboardInterrupt

    for what in (lambda: write(steps, 2), lambda: write(steps, 2), lambda: steps.forget_after(1)):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                what()
        assert all((steps.path(step) / "inner" / "file").exists() for step in steps.steps())
        write(steps, 2)
        assert names(tmp_path) == ["step_000002"]


def test_later_steps_are_forgotten_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    steps = StepFolders(tmp_path, suffix)
    for step in (1, 2, 3):
        write(steps, step)
    (tmp_path / "notes_000009.txt").write_text("mine")
    steps.forget_after(1)
    assert names(tmp_path) == ["notes_000009.txt", f"step_000001{suffix}"]


def test_a_damaged_step_counts_no_more_and_pushes_out_no_older_one(tmp_path: Path) -> None:
    steps = StepFolders(tmp_path, keep_last=2)
    for step in (3, 6):
        write(steps, step)
    steps.set_aside_after(3)
    assert steps.steps() == [3]
    write(steps, 7)
    assert names(tmp_path) == ["damaged_step_000006", "step_000003", "step_000007"]
    write(steps, 9)
    steps.set_aside_after(7)
    assert names(tmp_path) == ["damaged_step_000006", "damaged_step_000009", "step_000007"]
    write(steps, 9)
    steps.set_aside_after(7)
    assert names(tmp_path) == ["damaged_step_000006", "damaged_step_000009", "step_000007"]
