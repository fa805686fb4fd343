"""metrics.jsonl of a resumed run equals that of a run that never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.tracking.metrics_log import MetricsLog
from megatron_rlpr.types import UserError


def records(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def write(folder: Path, first: int, last: int) -> None:
    log = MetricsLog(folder / "metrics.jsonl", resume_step=first - 1)
    for step in range(first, last + 1):
        log.append(step, {"reward/mean": step / 7, "actor/loss": -step})
    log.close()


@settings(max_examples=30, deadline=None)
@given(
    killed_at=st.integers(0, 6),
    resumed_at=st.integers(0, 6),
    torn=st.sampled_from(["", '{"step": 7, "rew', '{"step": 1}', "\n"]),
)
def test_a_resumed_log_equals_an_uninterrupted_one(
    killed_at: int, resumed_at: int, torn: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    resumed_at = min(resumed_at, killed_at)
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    write(whole, 1, 6)
    write(resumed, 1, killed_at)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(resumed, resumed_at + 1, 6)
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [p.name for p in resumed.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_in_an_old_folder_starts_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    MetricsLog(tmp_path / "metrics.jsonl").close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "folder" / "metrics.jsonl")
    log.append(1, {"reward/mean": 0.5})
    assert records(log.path) == [{"step": 1, "reward/mean": 0.5}]
    log.close()


def test_step_comes_first_and_is_the_given_one(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(4, {"a": 1, "step": 9})
    assert log.path.read_text() == '{"step": 4, "a": 1}\n'


def test_numbers_that_json_does_not_know_become_null_or_plain(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(
        1,
        {
            "nan": float("nan"),
            "inf": np.float32("-inf"),
            "numpy": np.float32(0.25),
            "integer": np.int64(3),
            "torch": torch.tensor(1.5),
            "torch_nan": torch.tensor(float("nan")),
            "none": None,
        },
    )
    expected = {
        "step": 1,
        "nan": None,
        "inf": None,
        "numpy": 0.25,
        "integer": 3,
        "torch": 1.5,
        "torch_nan": None,
        "none": None,
    }
    assert records(log.path) == [expected]


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"reward/mean": 1}', '{"step": "1"}', "\x00\xff"])
def test_a_line_that_is_no_record_is_an_error_not_a_loss(tmp_path: Path, bad: str) -> None:
    write(tmp_path, 1, 1)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + bad + "\n" + '{"step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=2)
    assert path.read_bytes() == before
