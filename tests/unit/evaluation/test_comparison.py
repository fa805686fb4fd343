"""summary.json says what changed and how sure that is."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.evaluation.comparison import compare, sign_test, summary_table, write_summary
from megatron_rlpr.tracking.console import Console

BEFORE = {"reward": [0.1, 0.2, 0.3, 0.4], "format": [0.0, 0.0, 1.0, 0.0], "accuracy": [0.0, 1.0, 0.0, 0.0]}
AFTER = {"reward": [0.6, 0.7, 0.8, 0.9], "format": [1.0, 1.0, 1.0, 1.0], "accuracy": [0.0, 1.0, 1.0, 0.0]}


def test_means_intervals_and_paired_differences() -> None:
    summary = compare(BEFORE, AFTER)
    assert summary["prompts"] == 4
    assert summary["before"]["format"]["mean"] == 0.25
    assert summary["after"]["accuracy"]["mean"] == 0.5
    reward = summary["difference"]["reward"]
    assert (reward["mean"], reward["low"], reward["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert reward["p_value"] == 0.125
    assert reward["rises_beyond_intervals"]
    assert not summary["difference"]["accuracy"]["rises_beyond_intervals"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_swapping_before_and_after_turns_the_difference_around(pairs: list[tuple[float, float]]) -> None:
    one, two = {"reward": [p[0] for p in pairs]}, {"reward": [p[1] for p in pairs]}
    forward, backward = compare(one, two), compare(two, one)
    assert forward["before"] == backward["after"]
    there, back = forward["difference"]["reward"], backward["difference"]["reward"]
    assert (there["mean"], there["low"], there["high"]) == pytest.approx((-back["mean"], -back["high"], -back["low"]))
    assert there["p_value"] == back["p_value"]
    assert not (there["rises_beyond_intervals"] and back["rises_beyond_intervals"])


def test_other_prompts_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare({"reward": [0.1, 0.2]}, {"reward": [0.1]})


def test_only_what_was_measured_twice_is_compared() -> None:
    assert list(
        compare({"reward": [0.1, 0.2], "format": [1, 1]}, {"reward": [0.1, 0.3], "accuracy": [1, 1]})["difference"]
    ) == ["reward"]


def test_sign_test_counts_prompts_that_changed() -> None:
    assert sign_test([]) == sign_test([0.0, 0.0]) == 1.0
    assert sign_test([1.0, -1.0, 0.0]) == 1.0
    assert sign_test([0.1] * 10) == pytest.approx(2 * 0.5**10)
    assert sign_test([0.1] * 9 + [-5.0, 0.0]) == pytest.approx(2 * (1 + 10) * 0.5**10)
    assert 0 <= sign_test([1.0] * 5000) < 1e-300


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=40))
def test_sign_test_is_the_exact_binomial_tail(differences: list[float]) -> None:
    changed = np.count_nonzero(differences)
    rose = differences.count(1.0)
    extreme = sum(math.comb(changed, k) for k in range(changed + 1) if abs(k - changed / 2) >= abs(rose - changed / 2))
    assert sign_test(differences) == pytest.approx(extreme / 2**changed)


def test_the_file_holds_what_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "run" / "summary.json"
    summary = write_summary(path, BEFORE, AFTER, steps=30, wall_time_s=600.04, peak_memory_gb=7.123, set="held_out")
    assert json.loads(path.read_text()) == summary
    assert (summary["steps"], summary["wall_time_s"], summary["peak_memory_gb"], summary["set"]) == (
        30,
        600.0,
        7.12,
        "held_out",
    )


def test_one_prompt_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    summary = write_summary(
        tmp_path / "s.json", {"reward": [0.3]}, {"reward": [0.4]}, steps=1, wall_time_s=1, peak_memory_gb=1
    )
    assert summary["before"]["reward"] == {"mean": 0.3, "low": None, "high": None}
    assert not summary["difference"]["reward"]["rises_beyond_intervals"]
    file = io.StringIO()
    Console(file=file).table(summary_table(summary))
    assert "0.300 [?, ?]" in file.getvalue()


def test_the_table_has_one_line_per_measure_in_a_log_file(tmp_path: Path) -> None:
    summary = write_summary(tmp_path / "s.json", BEFORE, AFTER, steps=30, wall_time_s=600, peak_memory_gb=7.1)
    file = io.StringIO()
    Console(file=file).table(summary_table(summary))
    (row,) = [line for line in file.getvalue().splitlines() if "format rate" in line]
    assert [part in row for part in ("0.250 [", "1.000 [", "+0.750 [")] == [True, True, True]
    assert "30 steps in 10.0 minutes, at most 7.1 GB of memory" in file.getvalue()
