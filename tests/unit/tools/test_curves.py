"""tools.curves: what it draws of runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.curves import curves, main


def run(folder: Path, *steps: dict[str, Any], validations: tuple[dict[str, Any], ...] = ()) -> Path:
    folder.mkdir(parents=True)
    for name, records in (("metrics.jsonl", steps), ("validation.jsonl", validations)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_every_run_is_a_line_of_each_metric_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = "val/val/greedy/accuracy"
    one = run(
        tmp_path / "one",
        *({"step": step, "reward/mean": step / 2, "actor/entropy": None} for step in (1, 2)),
        validations=({"step": 0, accuracy: 0.1}, {"step": 2, accuracy: 0.5, "val/val/greedy/reward": 3}),
    )
    two = run(tmp_path / "two", {"step": 1, "reward/mean": 1, "actor/entropy": 2.0, "other": 5})
    assert curves([one, two]) == {
        "reward/mean": {"one": [(1, 0.5), (2, 1.0)], "two": [(1, 1.0)]},
        "actor/entropy": {"two": [(1, 2.0)]},
        accuracy: {"one": [(0, 0.1), (2, 0.5)]},
    }
    picture = tmp_path / "made" / "curves.png"
    assert main(["--out", str(picture), str(one), str(two)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{picture}: 3 metrics of 2 runs\n"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / name / "run", {"step": 1, "reward/mean": 1}) for name in "ab"]
    assert list(curves(folders)["reward/mean"]) == list(map(str, folders))


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, broken = run(tmp_path / "empty"), run(tmp_path / "broken", {"step": 1}, {"no": 2})
    for folder, fault in (
        (tmp_path / "none", "none/metrics.jsonl: there is no such file"),
        (empty, "empty: no step has been recorded yet"),
        (broken, "broken/metrics.jsonl, line 2: expected the record of a step"),
    ):
        assert main(["--out", str(tmp_path / "x.png"), str(folder)]) == 2
        assert fault in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
