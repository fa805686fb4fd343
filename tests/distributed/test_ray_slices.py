"""Each rank of a tensor-parallel engine in Ray gets slices from a rank of the trainer of its own, and holds what whole
tensors would have given it, whatever happens to a lane."""

from __future__ import annotations

from typing import Any

import pytest
from program_report import alike, on_two_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks saw."""
    return on_two_ranks("ray_slices.py", tmp_path_factory.mktemp("models"))


def test_both_ranks_see_the_same(seen: list[dict[str, Any]]) -> None:
    assert alike(seen, apart_from=("events", "replaced"))["why_whole"] == ""


def test_a_worker_gets_about_half_of_the_bytes_and_samples_as_with_whole_tensors(seen: list[dict[str, Any]]) -> None:
    first = seen[0]["first"]
    assert (first["right"], first["exports"]) == (True, 1)
    assert 0.5 <= first["bytes"] < 0.52, "norms are on both, and the vocabulary is padded before it is cut"
    assert seen[0]["by_slices"] == seen[0]["by_whole_tensors"]


def test_changes_of_slices_are_changes_of_the_whole(seen: list[dict[str, Any]]) -> None:
    changes = seen[0]["changes"]
    assert (changes["right"], changes["exports"]) == (True, 1)
    assert changes["bytes"] < 0.02, "five bytes for each of the 2 % of the fp32 values that changed"
    assert seen[0]["by_changes"] == seen[0]["by_whole_changed_tensors"] != seen[0]["by_slices"]


def test_an_engine_that_loses_a_worker_is_replaced_and_the_other_one_takes_its_slices(
    seen: list[dict[str, Any]],
) -> None:
    assert seen[0]["worker_killed"] | {"bytes": 0.0} == {"right": True, "bytes": 0.0, "exports": 1}
    assert seen[0]["replaced"] == 1
    assert seen[0]["after_it"] == seen[0]["by_slices"]


def test_a_lane_of_broadcasts_that_breaks_is_made_anew(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["broadcast"]["right"]
    killed = seen[0]["worker_killed_in_a_group"]
    assert killed["right"]
    assert killed["exports"] in (1, 2), "once, if the other engine had got all before it broke"
    assert seen[0]["after_the_group"] == seen[0]["by_slices"]
    assert any("hand-over 7" in event for event in seen[0]["events"]), "nobody noticed that the lane broke"


def test_an_export_that_fails_on_one_rank_fails_on_both_and_the_next_one_works(seen: list[dict[str, Any]]) -> None:
    assert "the second rank cannot export" in seen[0]["failing_export"]
    assert seen[0]["next"]["right"]


def test_a_lane_that_cannot_be_opened_fails_on_both_ranks_and_the_next_hand_over_works(
    seen: list[dict[str, Any]],
) -> None:
    assert "rank 1: OSError: [Errno 24] Too many open files" in seen[0]["not_opened"]
    assert seen[0]["next_but_one"]["right"]
    assert seen[0]["after_the_next"] == seen[0]["by_changes"]
