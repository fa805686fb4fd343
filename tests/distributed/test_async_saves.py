"""A run that is killed while it saves in the background goes on, bit for bit, with the newest complete checkpoint.
RLPR_SEED and RLPR_KILLS choose other moments and how many."""

from __future__ import annotations

import os
from typing import Any

import pytest
from generated_cases import SEED
from program_report import report_of

pytestmark = pytest.mark.distributed

KILLS = int(os.environ.get("RLPR_KILLS", "10"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("async_saves")
    return report_of("async_saves.py", work, work, SEED, KILLS, timeout_s=900)


def test_after_every_kill_the_newest_checkpoint_loads_bit_for_bit(report: dict[str, Any]) -> None:
    """Its weights were trained on while it was written."""
    goes_on = [*(start["resumed"] for start in report["starts"][1:]), report["end"]["resumed"]]
    assert len(goes_on) == KILLS
    for resumed in goes_on:
        assert [event["problems"] for event in resumed] == [[], []]
        assert [event["digest"] for event in resumed] == report["digests"][str(resumed[0]["step"])]


def test_a_kill_costs_no_checkpoint_but_the_one_that_was_being_written(report: dict[str, Any]) -> None:
    starts = report["starts"]
    goes_on = [*(start["resumed"] for start in starts[1:]), report["end"]["resumed"]]
    for killed, resumed in zip(starts, goes_on, strict=True):
        assert killed["saving"] - 1 <= resumed[0]["step"] <= killed["trained"]
        newest = resumed[0]["step"]
        # A kill between the new checkpoint's rename and the removal of the oldest leaves both.
        assert resumed[0]["kept"] in ([*range(newest - kept, newest + 1)] for kept in range(3))


def test_a_killed_run_ends_with_the_checkpoints_of_an_undisturbed_one(report: dict[str, Any]) -> None:
    last = len(report["digests"])
    assert [event["newest"] for event in report["end"]["ended"]] == [[last - 1, last]] * 2


def test_a_save_in_the_background_that_is_refused_is_one_line_and_leaves_nothing(report: dict[str, Any]) -> None:
    said = {fact["rank"]: fact["said"] for fact in report["limited"]}
    assert "step_000002" in said[0], said
    assert "ulimit -f" in said[0], said
    assert "the first rank says why" in said[1] or "ulimit -f" in said[1], said
    assert all("\n" not in line for line in said.values())
    assert [fact["left"] for fact in report["limited"]] == [["step_000001"]] * 2
