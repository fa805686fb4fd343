"""Responses are graded in processes that a hard answer cannot hold up."""

from __future__ import annotations

from contextlib import closing

import pytest

from megatron_rlpr.grading import pool as pool_module
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeTask
from megatron_rlpr.types import UserError

ENDLESS = "((x**9+y)**9+x)**9"  # simplifying it takes minutes
EASY = GradeTask("Math-500_Avg2", r"\boxed{\frac{1}{2}}", "0.5")


def test_an_endless_answer_is_wrong_in_time_and_the_others_are_graded() -> None:
    tasks = [EASY, GradeTask("Math-500_Avg2", f"\\boxed{{{ENDLESS}}}", "y"), EASY, EASY]
    with closing(GraderPool(workers=1, timeout_s=5.0)) as pool:
        results = pool.grade_many(tasks)
        assert [r.accuracy for r in results] == [1.0, 0.0, 1.0, 1.0]
        assert "time limit" in results[1].reason
        assert pool.failures == {"time limit": 1}
        assert pool.grade_many([EASY])[0].accuracy == 1.0


def test_many_endless_answers_share_one_limit_and_hold_up_one_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of each answer would let them run for 1,000 s; without a second worker the easy one would wait."""
    monkeypatch.setattr(pool_module, "_SHORT_LIMIT_S", 1000.0)
    endless = GradeTask("Math-500_Avg2", f"\\boxed{{{ENDLESS}}}", "y")
    with closing(GraderPool(workers=2, timeout_s=1000.0)) as pool:
        assert pool.grade_many([EASY])[0].accuracy == 1.0  # the workers are there
        monkeypatch.setattr(pool_module, "_BATCH_LIMIT_S", 20.0)
        results = pool.grade_many([endless, EASY, endless, endless])
        assert [r.accuracy for r in results] == [0.0, 1.0, 0.0, 0.0]
        assert pool.failures == {"time limit": 3}


def test_bounded_graders_start_no_process_and_unknown_sources_grade_nothing() -> None:
    with closing(GraderPool()) as pool:
        assert pool.grade_many([GradeTask("quickstart/sums", "<answer>4</answer>", "4")])[0].accuracy == 1.0
        with pytest.raises(UserError, match="unknown_set"):
            pool.grade_many([EASY, GradeTask("unknown_set", "4", "4")])
        assert not pool.started


def test_the_format_counts_even_without_a_verdict() -> None:
    response = f"<think>t</think><answer>{ENDLESS}</answer>"
    with closing(GraderPool(workers=1, timeout_s=1.0)) as pool:
        result = pool.grade_many([GradeTask("Math-500", response, "y", "Use <answer> </answer>.")])[0]
    assert (result.accuracy, result.format) == (0.0, 1.0)


def test_a_pool_needs_a_worker_and_a_limit_and_a_task_a_known_phase() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        GraderPool(workers=0)
    with pytest.raises(ValueError, match="phase 'test'"):
        GradeTask("quickstart/sums", "4", "4", phase="test")  # type: ignore[arg-type]
