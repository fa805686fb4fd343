"""Phases add up until they are taken, also those that end by an exception."""

from __future__ import annotations

import time

import pytest

from megatron_rlpr.system.clock import Clock


def test_a_phase_adds_up_over_its_uses_and_is_reset_by_take() -> None:
    clock = Clock()
    for _ in range(3):
        with clock.phase("score"):
            time.sleep(0.01)
    with clock.phase("step"), clock.phase("update"):
        time.sleep(0.01)
    seconds = clock.take()
    assert set(seconds) == {"score", "step", "update"}
    assert seconds["score"] >= 0.03
    assert seconds["step"] >= seconds["update"] >= 0.01
    assert clock.take() == {}


def test_a_phase_that_fails_is_counted() -> None:
    clock = Clock()

    def fail() -> None:
        with clock.phase("score"):
            time.sleep(0.01)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert clock.take()["score"] >= 0.01
