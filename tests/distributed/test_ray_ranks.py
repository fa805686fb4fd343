"""Two trainer ranks export their weights again for engines that lost them, whenever these die, and sample as if nothing
had happened."""

from __future__ import annotations

from typing import Any

import pytest
from program_report import alike, on_two_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks saw."""
    return on_two_ranks("ray_ranks.py", tmp_path_factory.mktemp("models"))


def test_both_ranks_see_the_same_and_export_as_often(seen: list[dict[str, Any]]) -> None:
    alike(seen, apart_from=("events", "replaced"))


def test_a_hand_over_of_version_0_is_loaded_too(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["version_0"] == [0, True, 1]
    assert seen[0]["updated"] != seen[0]["folder"]


def test_engines_killed_at_work_get_the_weights_again_and_the_samples_are_the_same(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["killed_at_work"] == seen[0]["updated"]
    assert 1 <= seen[0]["exports_for_the_new"] <= 2


def test_a_hand_over_goes_on_without_an_engine_that_is_killed_in_it(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["one_killed_in_hand_over"] == [1, True, 1]
    assert seen[0]["there_after_it"] == 1, "it waited for a new engine"
    assert tokens(seen[0]["after_it"]) == tokens(seen[0]["folder"])


def test_a_hand_over_waits_for_new_engines_when_all_are_lost(seen: list[dict[str, Any]]) -> None:
    version, right, exports = seen[0]["both_lost_in_hand_over"]
    assert (version, right) == (2, True)
    assert 2 <= exports <= 3
    assert tokens(seen[0]["after_both"]) == tokens(seen[0]["updated"])
    assert {tuple(r[2]) for _, responses in seen[0]["after_both"] for r in responses} == {(2,)}


def test_rollouts_that_were_begun_survive_the_end_of_all_engines(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["collected"] == seen[0]["after_both"]


def test_a_hand_over_between_begin_and_collect_reaches_the_engines_that_replace_the_dead(
    seen: list[dict[str, Any]],
) -> None:
    version, right, _ = seen[0]["hand_over_to_the_new"]
    assert (version, right) == (3, True)
    responses = [response for _, group in seen[0]["collected_after_it"] for response in group]
    assert len(responses) == 12
    assert {tuple(versions) for _, _, versions in responses} <= {(2,), (3,)}
    assert (3,) in {tuple(versions) for _, _, versions in responses}


def test_weights_that_are_others_by_now_are_refused_on_all_ranks(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert "needs the weights of hand-over 3" in one["changed"]
        assert "the policy's are others now" in one["changed"]


def test_every_loss_is_counted_and_told_with_its_reason(seen: list[dict[str, Any]]) -> None:
    told = "\n".join(seen[0]["events"])
    assert seen[0]["replaced"] == 9
    assert seen[1]["replaced"] == 0
    assert "took no weights for 15 s" in told or "computed nothing for 15 s" in told
    assert "went away while it took its weights" in told or "ActorDiedError" in told


def tokens(groups: list[Any]) -> list[Any]:
    return [[index, [[seed, token_ids] for seed, token_ids, _ in responses]] for index, responses in groups]
