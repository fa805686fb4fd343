"""What a real vLLM engine of this project promises, observed in a process of its own (engine_observations.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import EOS, EOS_IDS, save_gemma2, save_llama, save_mistral, save_mixtral, save_qwen2, save_qwen3
from warm_start import start

from megatron_rlpr.weights.architectures import SUPPORTED

HERE = Path(__file__).parent
UPDATED = ["llama, tied, fp32", "qwen2, untied, bf16", "mixtral, untied, fp32"]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    families = {"llama": save_llama, "qwen": save_qwen2, "mixtral": save_mixtral}
    families |= {"qwen3": save_qwen3, "mistral": save_mistral, "gemma2": save_gemma2}
    for family, save in families.items():
        save(folder / f"{family}_a", 0)
        save(folder / f"{family}_b", 1)
    status, output = start(str(HERE / "engine_observations.py"), [folder], folder / "log").end()
    assert status == 0, output[-4000:]
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def generation(observed: dict[str, Any]) -> dict[str, Any]:
    return observed["generation"]


@pytest.fixture(params=UPDATED)
def update(observed: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return observed["updates"][request.param]


def test_an_engine_filled_by_slices_is_the_same_for_every_kind_of_model(update: dict[str, Any]) -> None:
    assert update["slices"] == [["", "None", "None"], True, True]


def test_every_rank_of_an_engine_gets_the_bits_that_vllms_own_loaders_give_it(observed: dict[str, Any]) -> None:
    """Every supported family; key/value heads, vocabularies and experts in all relations to the number of ranks."""
    found = observed["unlike_the_loaders"]
    assert found.keys() == {f"{name} {ranks}" for name in SUPPORTED for ranks in (1, 2, 4, 8)}
    assert {name: different for name, different in found.items() if different} == {}


def test_an_engine_leaves_random_states_threads_and_launcher_variables_alone(observed: dict[str, Any]) -> None:
    assert observed["state_kept_by_the_start"]
    assert observed["generation"]["state_kept_while_generating"]


def test_log_probs_are_those_of_the_tempered_policy(generation: dict[str, Any]) -> None:
    assert generation["gap_sampled"] < 1e-4


def test_log_probs_of_truncated_sampling_are_those_of_all_tokens_or_none(observed: dict[str, Any]) -> None:
    """Those of the tokens kept would be larger than the actor's even where both have the same weights."""
    assert len(observed["truncated"]["gaps"]) == 4
    assert max(observed["truncated"]["gaps"].values()) < 1e-4
    assert set(observed["truncated"]["unknown"]) == {0}


def test_greedy_log_probs_are_those_of_temperature_one(generation: dict[str, Any]) -> None:
    assert generation["gap_greedy"] < 1e-4
    assert generation["greedy_ignores_seeds"]


def test_a_response_ends_with_its_end_of_sequence_token_or_at_the_limit(generation: dict[str, Any]) -> None:
    ends = {*EOS_IDS, EOS}
    reasons = {response["finish_reason"] for response in generation["responses"]}
    assert reasons == {"stop", "length"}
    for response in generation["responses"]:
        token_ids = response["token_ids"]
        assert not ends & set(token_ids[:-1])
        assert (token_ids[-1] in ends) == (response["finish_reason"] == "stop")
        assert response["finish_reason"] == "stop" or len(token_ids) == 60
        assert len(response["engine_log_probs"]) == len(token_ids)


def test_the_text_is_the_decoded_tokens_with_special_ones(generation: dict[str, Any]) -> None:
    assert [response["text"] for response in generation["responses"]] == generation["decoded"]


def test_responses_keep_request_order_seed_and_version(generation: dict[str, Any]) -> None:
    assert [response["seed"] for response in generation["responses"]] == list(range(16))
    assert {tuple(response["weight_versions"]) for response in generation["responses"]} == {(0,)}


def test_samples_of_one_prompt_differ(generation: dict[str, Any]) -> None:
    token_ids = [tuple(response["token_ids"]) for response in generation["responses"]]
    assert len(set(token_ids)) == len(token_ids)


def test_generation_is_a_function_of_weights_and_requests(generation: dict[str, Any]) -> None:
    assert generation["repeated_is_equal"]
    assert generation["reversed_tokens_are_equal"]
    assert generation["no_requests"] == []


def test_all_but_the_first_request_share_the_two_whole_blocks_of_the_common_beginning(
    generation: dict[str, Any],
) -> None:
    assert generation["shared_prompt_tokens"] == 15 * 64


def test_progress_counts_tokens_and_requests_to_the_end(generation: dict[str, Any]) -> None:
    progress = generation["progress"]
    tokens, finished, totals = zip(*progress, strict=True)
    assert list(tokens) == sorted(tokens)
    assert list(finished) == sorted(finished)
    assert set(totals) == {16}
    assert progress[-1] == [sum(len(response["token_ids"]) for response in generation["responses"]), 16, 16]


def test_an_over_long_prompt_is_named_and_an_interrupted_call_leaves_nothing_behind(generation: dict[str, Any]) -> None:
    assert generation["too_long"].startswith(
        "UserError: prompt 7: 200 prompt tokens and up to 60 response tokens exceed"
    )
    assert generation["interrupted"] == "InterruptedError: stop"
    assert generation["repeated_is_equal"]  # observed after both


def test_an_updated_engine_equals_one_started_with_those_weights(update: dict[str, Any]) -> None:
    assert update["update"] == "no error"
    assert update["updated_equals_fresh"]
    assert update["version"] == [2, [2]]


def test_a_wrong_manifest_never_touches_the_engine(update: dict[str, Any]) -> None:
    assert update["wrong_manifest"].startswith(
        "WeightHandoverError: weights do not fit the engine's model; wrong shape: model.layers.0"
    )
    assert update["wrong_manifest_changes_nothing"]


def test_after_a_fault_in_the_stream_the_engine_refuses_and_names_the_cause(update: dict[str, Any]) -> None:
    assert "with shape [1, " in update["bent_stream"]
    cause = update["bent_stream"].removeprefix("WeightHandoverError: ")
    assert update["refusal"] == f"RolloutError: the engine holds no usable weights: {cause}"
    assert update["version_after_failure"] == 2


def test_a_good_update_repairs_an_engine_wherever_the_stream_broke(update: dict[str, Any]) -> None:
    assert len(update["recovers_from_a_break_anywhere"]) >= 20
    assert all(update["recovers_from_a_break_anywhere"])


def test_a_rebuilt_engine_waits_for_the_current_weights_and_is_then_as_new(update: dict[str, Any]) -> None:
    assert "has not been given the current weights yet" in update["rebuilt_without_weights"]
    assert update["confirmed"] == [6, True]
    assert update["rebuilt_equals_fresh"]


def test_an_engine_that_could_not_be_rebuilt_says_so_until_it_is(update: dict[str, Any]) -> None:
    start, generate, submit, step, load, abort, in_flight = update["rebuild_fails"]
    assert start != "no error"
    said = "it could not be started anew: "
    for error in (generate, submit, step):
        assert error.startswith(f"RolloutError: the engine holds no usable weights: {said}")
    assert load.startswith(f"WeightHandoverError: the engine cannot be loaded before it is rebuilt: {said}")
    assert (abort, in_flight) == ("no error", "(0, 0)")
    assert update["rebuilt_equals_fresh"]


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2"])
def test_windows_soft_caps_and_norms_over_heads_survive_an_update(observed: dict[str, Any], family: str) -> None:
    assert observed["gaps_after_an_update"][family] < 1e-4


def test_an_engine_that_starts_with_random_weights_waits_for_the_policys(observed: dict[str, Any]) -> None:
    assert "random ones (load_format=dummy)" in observed["sleep"]["before_its_first_weights"]


def test_an_engine_that_slept_answers_as_one_that_did_not_and_refuses_until_it_is_awake(
    observed: dict[str, Any],
) -> None:
    for version, cycle in enumerate(observed["sleep"]["cycles"], 1):
        asleep, asked, loaded, half_awake, sleeps_again, load, no_cache, same, has = cycle
        assert asleep
        assert asked == "RolloutError: the engine is asleep: it generates again after the next hand-over"
        assert loaded == "WeightHandoverError: the engine is asleep: wake its weights first"
        assert "has memory for its weights alone" in half_awake
        assert sleeps_again == "RolloutError: the engine cannot fall asleep: it has memory for its weights alone"
        assert load == "no error"
        assert "has memory for its weights alone" in no_cache
        assert (same, has) == (True, version)


def test_an_engine_with_requests_does_not_sleep(observed: dict[str, Any]) -> None:
    assert observed["sleep"]["in_flight"] == "RolloutError: the engine cannot sleep: it works on 1 submitted requests"


def test_an_engine_that_was_made_anew_half_awake_works_after_its_next_hand_over(observed: dict[str, Any]) -> None:
    assert observed["sleep"]["rebuilt"] == ["no error", False, 8]
