"""Engines in Ray that get nothing but changes hold the whole weights, bit for bit, and sample as an engine that got
these; changes of what they do not hold are noticed, and all weights are sent instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from program_report import on_two_models

pytestmark = pytest.mark.distributed

WHOLE = {"right": True, "bytes": 1.0, "density": 1.0}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = on_two_models("ray_delta.py", tmp_path_factory.mktemp("models"))
    return json.loads((models / "result.json").read_text())


def is_of_changes(said: dict[str, Any]) -> bool:
    """Confirmed, in one export: five bytes for each of the 2 % of the fp32 values that changed."""
    of_changes = 0.015 < said["density"] < 0.025 and said["bytes"] < 0.04
    return bool(said["right"] and of_changes and said["exports"] == 1)


def test_the_first_hand_over_sends_all_and_later_ones_what_has_changed(seen: dict[str, Any]) -> None:
    assert seen["first"] == {**WHOLE, "exports": 1, "replaced": 0}
    assert all(map(is_of_changes, seen["changes"])), seen["changes"]


def test_engines_that_got_changes_sample_what_one_with_the_whole_weights_samples(seen: dict[str, Any]) -> None:
    assert seen["sampled"] == seen["expected"]


def test_changes_of_an_unknown_base_are_refused_and_everything_follows_at_once(seen: dict[str, Any]) -> None:
    assert seen["unknown_base"] == {**WHOLE, "exports": 2, "replaced": 0}


def test_a_wrong_base_shows_in_the_checksum_and_new_engines_get_everything(seen: dict[str, Any]) -> None:
    said = seen["wrong_base"]
    assert {name: said[name] for name in WHOLE} == WHOLE
    assert said["replaced"] == 2
    assert len(seen["events"]) == 2
    assert all("did not get the weights of hand-over 5 (checksum " in event for event in seen["events"])
    assert seen["sampled_by_new"] == seen["expected_of_new"]
    assert is_of_changes(seen["changes_to_new"]), seen["changes_to_new"]


def test_both_workers_of_an_engine_get_changes_by_broadcasts(seen: dict[str, Any]) -> None:
    first, *changes = seen["two_workers"]["said"]
    assert first == {**WHOLE, "exports": 1, "replaced": 0}
    assert all(map(is_of_changes, changes)), changes
    assert seen["two_workers"]["sampled"] == seen["two_workers"]["expected"]
