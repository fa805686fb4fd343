"""tools.headline: what it draws and prints of several runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_rlpr.evaluation.comparison import write_summary
from megatron_rlpr.types import UserError
from tools.headline import main, outcomes

BEFORE = {"reference_probability": [0.1, 0.3, 0.2], "accuracy": [0.0, 0.0, 1.0], "format": [0.0, 1.0, 1.0]}


def run(folder: Path, better: float, before: dict[str, list[float]] = BEFORE) -> Path:
    folder.mkdir(parents=True)
    after = {name: [min(1.0, value + better) for value in values] for name, values in before.items()}
    write_summary(folder / "summary.json", before, after, steps=3, wall_time_s=1.0, peak_memory_gb=1.0)
    return folder


def test_every_run_is_a_row_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [run(tmp_path / name, 0.5, BEFORE | {"reward": [0.1, 0.1, 0.3]}) for name in ("s1", "s2")]
    control = run(tmp_path / "format", 0.25, BEFORE | {"reward": BEFORE["format"]})  # it has another reward
    picture = tmp_path / "made" / "headline.svg"
    assert main(["--out", str(picture), *map(str, seeds), "--control", str(control)]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "| run | reference probability | accuracy | format rate |"
    labels = [row.split(" | ")[0].removeprefix("| ") for row in rows[:4]]
    assert labels == ["before training", "s1", "s2", "format (control)"]
    assert [row.split(" | ")[1].split()[0] for row in rows[:4]] == ["0.200", "0.700", "0.700", "0.450"]
    assert picture.read_text().lstrip().startswith("<?xml")
    first = picture.read_bytes()
    assert main(["--out", str(picture), *map(str, seeds), "--control", str(control)]) == 0
    assert picture.read_bytes() == first


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    one = run(tmp_path / "one", 0.5)
    other = run(tmp_path / "other", 0.5, BEFORE | {"accuracy": [1.0, 1.0, 1.0]})
    summaries = {folder: json.loads((folder / "summary.json").read_text()) for folder in (one, other)}
    with pytest.raises(UserError, match=r"other: began with other answers than .*one"):
        outcomes(summaries)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"prompts": 3, "before": {}, "after": null}'])
def test_what_is_no_summary_is_named(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "summary.json").write_text(content)
    assert main(["--out", str(tmp_path / "x.png"), str(folder)]) == 2
    assert f"{folder / 'summary.json'}: " in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
