"""tools.report: what it reads of a run, which responses it takes, what it says about what it cannot show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import PHASES, STEP_SECONDS, group, response_text, write_numbers, write_step

from tools.report.__main__ import main
from tools.report.figures import charts
from tools.report.grades import correctness
from tools.report.run_record import RunRecord, read_runs
from tools.report.samples import choose

ALL = 10**9


def a_run(folder: Path, steps: int = 3, groups: int = 2) -> RunRecord:
    write_numbers(folder, steps)
    texts = [response_text("11"), response_text("12")]
    for step in range(1, steps + 1):
        write_step(folder, step, [group(number, texts) for number in range(groups)])
    (run,) = read_runs([folder])
    return run


def embedded(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_path_of_the_page_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "mine")
    assert main([str(tmp_path / "mine")]) == 0
    page = tmp_path / "mine" / "report.html"
    assert capsys.readouterr().out == f"report: {page}\n"
    data = embedded(page)
    assert (data["runs"], len(data["rows"])) == (["mine"], 3 * 2 * 2)
    assert "0.250 [" in page.read_text(), "the accuracy before training"


def test_the_arguments_of_a_training_name_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "mine")
    recipe = tmp_path / "mine" / "config.yaml"
    assert main(["--config", str(recipe), f"trainer.runs_dir={tmp_path}", "trainer.name=mine"]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/mine/report.html\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; give a run's folder"),
        (["empty"], "empty: holds nothing of a run (expected metrics.jsonl, "),
        ([], "give the folders of one or several runs"),
        (["empty", "--samples", "0"], "--samples 0: expected at least 1"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_of_a_broken_run_the_page_shows_what_there_is_and_says_what_there_is_not(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "broken").folder
    with folder.metrics.open("a") as file:
        file.write('[1]\n{"step": 4, "reward/me')
    folder.validations.unlink()
    folder.summary.write_text('{"validation_set": "val"}')
    folder.config.write_text("model: {path: [")
    (folder.rollouts / "step_000002.parquet").write_bytes(b"no parquet")
    assert main([str(folder.path)]) == 0
    page = (folder.path / "report.html").read_text()
    for note in (
        "metrics.jsonl: 2 lines are no record of a step and are left out (line 4, 5)",
        "validation.jsonl is not there: no curves on held-out questions",
        "summary.json is not as a run writes it (KeyError",
        "config.yaml cannot be read (config.yaml, line 1",
        "step_000002.parquet cannot be read (",
        "which responses are right is not known",
        "not drawn, because no run has numbers for it: Accuracy, Held-out reward and its parts",
    ):
        assert note in page.replace("&#39;", "'"), note
    assert len(embedded(folder.path / "report.html")["rows"]) == 2 * 4


def test_a_run_without_rollouts_has_a_page_without_responses(tmp_path: Path) -> None:
    write_numbers(tmp_path / "numbers", 2)
    assert main([str(tmp_path / "numbers")]) == 0
    page = tmp_path / "numbers" / "report.html"
    assert embedded(page)["rows"] == []
    assert "rollouts is not there: no responses to show" in page.read_text()


def test_a_sample_is_of_whole_groups_from_steps_at_even_distances(tmp_path: Path) -> None:
    run = a_run(tmp_path / "long", steps=9, groups=40)  # 80 responses a step
    everything = choose(run, 720, ALL)
    assert (len(everything.rows), everything.note) == (720, "all 720 stored responses of 9 steps")
    some = choose(run, 96, ALL)
    assert [row["step"] for row in some.rows] == sorted([1, 5, 9] * 32)
    assert "96 of 720 stored responses, whole groups drawn at random from 3 of 9 steps" in some.note
    groups = [(row["step"], row["group"]) for row in some.rows]
    assert all(groups.count(one) == 2 for one in groups)
    assert len({number for _, number in groups}) > 16, "not the same prompts in every step"
    assert choose(run, 96, ALL).rows == some.rows
    assert len(choose(run, 720, 9 * 10 * len("5+6?" + response_text("11"))).rows) == 9 * 10


def test_a_group_that_is_larger_than_the_sample_is_shown(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert len(choose(run, 1, 1).rows) == 2


def test_a_response_is_right_by_the_rules_where_the_run_did_not_grade_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1, groups=1)
    rows = choose(run, ALL, ALL).rows
    assert [row["accuracy"] for row in rows] == [0.0, 0.0]
    assert correctness(run, rows) == [True, False]
    foreign = [{**row, "data_source": "nobody's"} for row in rows]
    assert correctness(run, foreign) == [None, None]
    assert any('data_source "nobody\'s" has no grader' in note for note in run.notes)


def test_a_response_is_right_as_the_run_graded_it(tmp_path: Path) -> None:
    write_numbers(tmp_path / "graded", 1, reward={"reward_manager": "naive"})
    write_step(tmp_path / "graded", 1, [group(0, [response_text("11")])])
    (run,) = read_runs([tmp_path / "graded"])
    (row,) = choose(run, ALL, ALL).rows
    assert correctness(run, [row, {**row, "accuracy": 1.0}]) == [False, True]


@pytest.mark.parametrize(("steps", "bars"), [(7, 7), (250, 84)])
def test_the_phases_of_a_step_add_up_to_it(steps: int, bars: int, tmp_path: Path) -> None:
    write_numbers(tmp_path / "run", steps)
    drawn, _ = charts(read_runs([tmp_path / "run"]))
    traces = {trace["name"]: trace["y"] for trace in drawn[-1]["data"]}
    assert list(traces) == [*PHASES, "other"]
    assert {name: values[0] for name, values in traces.items()} == {**PHASES, "other": pytest.approx(0.25)}
    assert np.allclose(np.sum(list(traces.values()), axis=0), [STEP_SECONDS] * bars)


def test_runs_share_axes_and_metrics_without_numbers_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_numbers(tmp_path / name, 3)
    drawn, not_drawn = charts(read_runs([tmp_path / "a", tmp_path / "b"]))
    named = {chart["title"]: [trace["name"] for trace in chart["data"]] for chart in drawn}
    assert named["Accuracy"] == ["a: val/val/greedy/accuracy", "b: val/val/greedy/accuracy"]
    assert named["Speed"] == [f"{run}: tokens/s{part}" for run in "ab" for part in ("", "_rollout")]
    assert not_drawn == []


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for place in ("x", "y"):
        write_numbers(tmp_path / place / "same", 1)
    names = [run.name for run in read_runs([tmp_path / "x" / "same", tmp_path / "y" / "same"])]
    assert names == [str(tmp_path / "x" / "same"), str(tmp_path / "y" / "same")]
