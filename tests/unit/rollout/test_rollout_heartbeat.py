"""An engine that computes, however slowly, is waited for; one that stands still or never comes to an end is not."""

from __future__ import annotations

import pytest

from megatron_rlpr.rollout.ray.heartbeat import Silence

LIMIT_S = 30.0


def after(seconds: int, computed: list[float]) -> str:
    """The verdict of a call of so many seconds in which these heartbeats were heard at even distances."""
    silence = Silence(LIMIT_S)
    for second in range(seconds):
        silence.goes_on(1.0)
        if computed and second % (seconds // len(computed)) == 0:
            silence.heard(computed[second // (seconds // len(computed))])
        if silence.verdict:
            return f"{silence.verdict}, at {second + 1}"
    return ""


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_an_engine_that_gets_little_of_a_busy_machine_is_slow(share: float) -> None:
    assert after(100, [1000 + share * second for second in range(0, 100, 10)]) == ""


@pytest.mark.parametrize("heard", [[], [7.5] * 100])
def test_one_that_stands_still_hangs_whether_it_answers_or_not(heard: list[float]) -> None:
    assert after(100, heard) == f"computed nothing for 30 s, at {32 if heard else 31}"


def test_one_that_turns_in_circles_hangs_by_its_own_time_not_by_the_machines() -> None:
    assert after(100, [1000.0 + second for second in range(100)]) == "computed for 30 s without an end, at 32"
    assert after(1000, [1000.0 + 0.04 * second for second in range(100)]) == ""


def test_the_first_heartbeat_of_a_call_is_a_sign_of_life() -> None:
    silence = Silence(LIMIT_S)
    silence.goes_on(29.0)
    silence.heard(1.0)
    silence.goes_on(29.0)
    assert silence.verdict == ""
    silence.goes_on(2.0)
    assert silence.verdict == "computed nothing for 30 s"
