"""The collapse alarm: a warning exactly when the last values' mean falls below its share of the first ones'."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.config.schema import TrackingConfig
from megatron_rlpr.tracking.collapse_alarm import CollapseAlarm

VALUES = st.lists(st.none() | st.just(float("nan")) | st.integers(-8, 64).map(lambda n: n / 8), max_size=40)
SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def alarm(share: float = 0.5, window: int = 2) -> CollapseAlarm:
    return CollapseAlarm(TrackingConfig(collapse_gain_share=share, collapse_length_share=0.5, collapse_window=window))


def warned_steps(values: list[float | None], made: CollapseAlarm, first: int = 1) -> list[int]:
    warned = []
    for step, value in enumerate(values, start=first):
        lines = made.watch(step, {"reasoning/gain": value})
        assert all(line.startswith(f"warning: step {step}: reasoning/gain has fallen to ") for line in lines)
        warned += [step] * len(lines)
    return warned


def expected_steps(values: list[float | None], share: float, window: int) -> list[int]:
    """The rule, once more and plainly."""
    numbered = [(n, v) for n, v in enumerate(values, start=1) if v is not None and v == v]
    start, later = numbered[:window], numbered[window:]
    low, warned = False, []
    for end in range(window, len(later) + 1):
        recent = fmean(v for _, v in later[end - window : end])
        first = fmean(v for _, v in start)
        now_low = first > 0 and recent < share * first
        if now_low and not low:
            warned.append(later[end - 1][0])
        low = now_low
    return warned


@given(values=VALUES, share=SHARES, window=st.sampled_from([1, 2, 4]))
def test_it_warns_in_the_steps_that_the_rule_names(values: list[float | None], share: float, window: int) -> None:
    made = alarm(share, window)
    assert warned_steps(values, made) == expected_steps(values, share, window)
    assert [entry["step"] for entry in made.raised] == expected_steps(values, share, window)


@given(values=VALUES, share=SHARES, window=st.sampled_from([1, 2, 4]), stop=st.integers(0, 40))
def test_a_resumed_run_warns_as_an_undisturbed_one(
    values: list[float | None], share: float, window: int, stop: int
) -> None:
    undisturbed, before, after = (alarm(share, window) for _ in range(3))
    steps = warned_steps(values, undisturbed)
    first = warned_steps(values[:stop], before)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert first + warned_steps(values[stop:], after, first=min(stop, len(values)) + 1) == steps
    assert after.state_dict() == undisturbed.state_dict()


def test_both_measures_are_watched_and_named() -> None:
    made = alarm(window=1)
    assert made.watch(1, {"reasoning/gain": 0.4, "reasoning/length": 40.0}) == []
    assert made.watch(2, {"reasoning/gain": 0.39, "reasoning/length": 19.0}) == [
        "warning: step 2: reasoning/length has fallen to 19 (mean of 1 steps) from 40 at the start, less than "
        "tracking.collapse_length_share=0.5 of it: the reasoning may be collapsing"
    ]
    (gain,) = made.watch(3, {"reasoning/gain": 0.1, "reasoning/length": 5.0})
    assert gain.startswith("warning: step 3: reasoning/gain has fallen to 0.1 ")
    assert made.raised == [
        {"measure": "reasoning/length", "step": 2, "start": 40.0, "now": 19.0},
        {"measure": "reasoning/gain", "step": 3, "start": 0.4, "now": 0.1},
    ]


@pytest.mark.parametrize("state", [{}, {"watched": {}}, {"watched": None, "raised": []}, {"watched": {}, "raised": []}])
def test_a_foreign_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        alarm().load_state_dict(state)
