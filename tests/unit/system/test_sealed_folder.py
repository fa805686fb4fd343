"""A tool's output folder is complete or absent, made once, and never silently replaced."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from megatron_rlpr.system.sealed_folder import SEAL, empty, make_once, problems
from megatron_rlpr.types import UserError

ORIGIN = {"seed": 3, "names": ("a", "b")}


def two_files(staging: Path) -> None:
    (staging / "one.txt").write_text("1")
    (staging / "inner").mkdir(exist_ok=True)
    (staging / "inner" / "two.txt").write_text("2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


def test_the_first_call_builds_and_the_second_only_checks(out: Path) -> None:
    assert make_once(out, ORIGIN, two_files)
    assert problems(out) == []
    assert sorted(json.loads((out / SEAL).read_text())["files"]) == ["inner/two.txt", "one.txt"]
    assert not make_once(out, ORIGIN, lambda staging: pytest.fail("built twice"))


def test_an_empty_folder_is_filled(out: Path) -> None:
    out.mkdir(parents=True)
    assert make_once(out, ORIGIN, two_files)
    assert problems(out) == []


def test_a_build_that_fails_leaves_no_output(out: Path) -> None:
    def fails_half_way(staging: Path) -> None:
        two_files(staging)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make_once(out, ORIGIN, fails_half_way)
    assert not out.exists()
    assert make_once(out, ORIGIN, two_files)
    assert problems(out) == []


def test_a_refused_build_leaves_nothing_but_its_lock(out: Path) -> None:
    def refuses(staging: Path) -> None:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        make_once(out, ORIGIN, refuses)
    assert [path.name for path in out.parent.iterdir()] == [".out.lock"]


def test_what_an_interrupted_build_left_is_there_for_the_same_origin_only(out: Path) -> None:
    def interrupted(staging: Path) -> None:
        (staging / "part").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make_once(out, ORIGIN, interrupted)
    seen: list[bool] = []

    def build(staging: Path) -> None:
        seen.append((staging / "part").exists())
        empty(staging)
        two_files(staging)

    make_once(out.with_name("other"), {"seed": 4}, build)
    make_once(out, ORIGIN, build)
    assert seen == [False, True]
    assert not (out / "part").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda out: (out / "one.txt").write_text("changed"), "one.txt has changed"),
        (lambda out: (out / "inner" / "two.txt").unlink(), "inner/two.txt is missing"),
        (lambda out: (out / SEAL).unlink(), "sealed.json is missing"),
        (lambda out: (out / SEAL).write_text('{"files": '), "sealed.json is not readable"),
        (lambda out: (out / SEAL).write_text("[]"), "sealed.json is not readable"),
    ],
)
def test_a_damaged_output_is_refused_and_kept(out: Path, damage, says: str) -> None:
    make_once(out, ORIGIN, two_files)
    damage(out)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=rf"{out}: not a complete output.*{says}.*remove the folder"):
        make_once(out, ORIGIN, two_files)
    assert sorted(out.rglob("*")) == before


def test_an_output_of_another_origin_is_refused(out: Path) -> None:
    make_once(out, ORIGIN, two_files)
    with pytest.raises(
        UserError, match=r"was made with seed=3, now seed=4 is asked for; remove the folder or give another --out"
    ):
        make_once(out, {**ORIGIN, "seed": 4}, two_files)
    with pytest.raises(UserError, match=r"was made with size=None, now size=9"):
        make_once(out, {**ORIGIN, "size": 9}, two_files)


def test_a_file_in_the_way_is_refused(out: Path) -> None:
    out.parent.mkdir(parents=True)
    out.write_text("mine")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        make_once(out, ORIGIN, two_files)
    assert out.read_text() == "mine"


def test_of_two_callers_at_once_one_builds_and_one_waits(out: Path) -> None:
    def slowly(staging: Path) -> None:
        time.sleep(0.2)
        two_files(staging)

    built: list[bool] = []
    threads = [threading.Thread(target=lambda: built.append(make_once(out, ORIGIN, slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built) == [False, False, True]
