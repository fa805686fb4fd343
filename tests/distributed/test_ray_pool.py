"""A pool of engines in Ray samples what one engine in the training process samples, whatever happens to its engines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from program_report import on_two_models

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = on_two_models("ray_pool.py", tmp_path_factory.mktemp("models"))
    return json.loads((models / "result.json").read_text())


def tokens(groups: list[list[Any]]) -> list[Any]:
    return [[index, [[seed, token_ids] for seed, token_ids, _, _ in responses]] for index, responses in groups]


def log_probs(groups: list[list[Any]]) -> list[float]:
    return [number for _, responses in groups for response in responses for number in response[2]]


@pytest.mark.parametrize(
    ("alone", "pool"),
    [
        ("alone", "pool"),
        ("alone_updated", "pool_updated"),
        ("alone_updated", "disturbed"),
        ("alone_updated", "after_replacements"),
    ],
)
def test_the_pool_samples_what_one_engine_samples(seen: dict[str, Any], alone: str, pool: str) -> None:
    assert tokens(seen[pool]) == tokens(seen[alone])
    assert log_probs(seen[pool]) == pytest.approx(log_probs(seen[alone]), abs=1e-5)


def test_updated_engines_sample_otherwise_and_say_which_weights_wrote(seen: dict[str, Any]) -> None:
    assert tokens(seen["pool"]) != tokens(seen["pool_updated"])
    assert seen["version"] == 3
    for name, version in (("pool", 0), ("pool_updated", 3), ("disturbed", 3), ("after_replacements", 3)):
        assert {tuple(r[3]) for _, responses in seen[name] for r in responses} == {(version,)}


def test_a_dead_and_a_stopped_engine_are_both_replaced_while_they_had_work(seen: dict[str, Any]) -> None:
    assert len(seen["events"]) == 2
    for event, reason in zip(seen["events"], ("ActorDiedError", "computed nothing for 15 s (advance)"), strict=True):
        assert reason in event
        assert int(event.split("started again, ")[1].split(" requests")[0]) > 0, event
    assert seen["survivors"] == [], "a stopped process was left behind"


def test_an_engine_says_in_the_middle_of_a_call_that_it_computes(seen: dict[str, Any]) -> None:
    assert seen["heartbeats"] == sorted(seen["heartbeats"])
    assert len(set(seen["heartbeats"])) > 3


def test_mistakes_are_named_and_leave_the_pool_working(seen: dict[str, Any]) -> None:
    assert seen["unknown_token"].startswith("UserError: prompt 99 (sums): token ids reach beyond")
    assert "missing: model.layers.1.input_layernorm.weight" in seen["cut_manifest"]


def test_requests_in_flight_survive_an_update_and_go_on_with_the_new_weights(seen: dict[str, Any]) -> None:
    answers = seen["in_flight"]
    assert len(answers) == 24
    assert all(reason == "stop" or length == 150 for _, length, reason in answers)
    assert {tuple(versions) for versions, _, _ in answers} == {(3,), (3, 4), (4,)}


def test_a_response_of_two_versions_is_the_old_models_up_to_one_token_and_the_new_ones_from_there(
    seen: dict[str, Any],
) -> None:
    """By transformers' log-probs of the same tokens: keys and values of the old weights are not used after the
    update."""
    mixed = seen["mixed"]
    old = [abs(mine - theirs) < 1e-3 for mine, theirs in zip(mixed["engine"], mixed["b"], strict=True)]
    new = [abs(mine - theirs) < 1e-3 for mine, theirs in zip(mixed["engine"], mixed["a"], strict=True)]
    switches = [at for at in range(1, len(old)) if all(old[:at]) and all(new[at:])]
    assert switches
    assert not all(old)
    assert not all(new)


def test_every_worker_of_a_tensor_parallel_engine_gets_the_weights_by_itself(seen: dict[str, Any]) -> None:
    parallel = seen["tensor_parallel"]
    assert parallel["right"] == [[1, True], [2, True], [3, True]]
    for mine, alone in (("folder", "alone"), ("updated", "alone_updated")):
        assert tokens(parallel[mine]) == tokens(seen[alone])
        # Two workers add up in another order: up to 21 units in the last place of fp32 apart, whatever the processor.
        assert log_probs(parallel[mine]) == pytest.approx(log_probs(seen[alone]), rel=2e-6, abs=1e-5)


def test_a_worker_that_is_killed_in_a_hand_over_costs_its_engine_and_nothing_else(seen: dict[str, Any]) -> None:
    parallel = seen["tensor_parallel"]
    assert len(parallel["workers"]) == 2
    assert parallel["replaced"] == 1
    assert "hand-over 3 broke off and is repeated" in parallel["events"][0]
    assert tokens(parallel["after_a_kill"]) == tokens(parallel["updated"])
    assert {tuple(r[3]) for _, responses in parallel["after_a_kill"] for r in responses} == {(3,)}
