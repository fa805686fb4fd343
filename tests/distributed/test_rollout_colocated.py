"""Engines of several ranks act as one: same groups everywhere, whatever the layout; one rank's error is everybody's.

Run as a script, this file is one rank:  test_rollout_colocated.py MODELS TENSOR_PARALLEL_SIZE RESULT
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from error_text import error_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "rollout"))

LAYOUTS = {"1 process": (1, 1), "2 engines": (2, 1), "1 engine over 2 ranks": (2, 2)}


def observe(models: Path, tensor_parallel_size: int) -> dict[str, Any]:
    """What this rank sees; every call is made on all ranks."""
    from safetensors.torch import load_file

    from megatron_rlpr.rollout.engine import EngineSettings
    from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
    from megatron_rlpr.rollout.vllm.colocated import ColocatedRollouts
    from megatron_rlpr.rollout.vllm.engine import VllmEngine
    from megatron_rlpr.system.decisions import gather_or_raise
    from megatron_rlpr.types import Prompt
    from megatron_rlpr.weights.architectures import model_shape, parameter_table
    from megatron_rlpr.weights.engine_slices import EngineRank, slices_of
    from megatron_rlpr.weights.hf_folder import HfFolder
    from megatron_rlpr.weights.receiver import Announcement

    rank = dist.get_rank() if dist.is_initialized() else 0
    settings = EngineSettings(
        str(models / "a"), "float32", 128, max_num_seqs=16, kv_cache_gb=0.05, tensor_parallel_size=tensor_parallel_size
    )
    engine = VllmEngine(settings)
    rollouts, one_by_one = ColocatedRollouts(engine), ColocatedRollouts(engine, room=3)
    token_ids = [tuple(range(200 + 10 * i, 240 + 10 * i)) for i in range(5)]
    prompts = [
        Prompt(index=20 + i, token_ids=ids, messages=(), reference_answer="", data_source="sums")
        for i, ids in enumerate(token_ids)
    ]
    unknown_token = Prompt(index=99, token_ids=(1, 5000), messages=(), reference_answer="", data_source="sums")
    tensors = load_file(models / "b" / "model.safetensors")
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    taken: list[str] = []

    def groups(of: list[Prompt], step: int = 1, source: ColocatedRollouts = rollouts) -> list[list[Any]]:
        made = source.generate(RolloutRequest(of, 3, step, 7, SamplingSettings(temperature=0.7, max_tokens=24)))
        return [
            [
                g.prompt.index,
                [
                    [r.seed, list(map(int, r.token_ids)), list(map(float, r.engine_log_probs)), r.weight_versions]
                    for r in g.responses
                ],
            ]
            for g in made
        ]

    def stream(breaks: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, tensor) in enumerate(tensors.items()):
            if breaks and number == 5:
                raise OSError("the exporter went away")
            taken.append(name)
            yield name, tensor

    last = dist.get_world_size() - 1 if dist.is_initialized() else 0
    seen = {
        "groups": groups(prompts),
        "as_there_is_room": groups(prompts, source=one_by_one),
        "no_prompts": groups([], source=one_by_one),
        "fewer_prompts_than_engines": groups(prompts[:1]),
        "other_step": groups(prompts[:2], step=2),
        "prompt_twice": groups([prompts[0], prompts[0]]),
        "unknown_token_on_one_rank": error_of(lambda: groups([prompts[0], unknown_token])),
        "wrong_manifest_on_one_rank": error_of(
            lambda: rollouts.update_weights(
                Announcement({**manifest, **({"surplus": (1,)} if rank == last else {})}, 1), stream(breaks=False)
            )
        ),
        "tensors_taken_before_agreement": len(taken),
        "broken_stream_on_one_rank": error_of(
            lambda: rollouts.update_weights(Announcement(manifest, 1), stream(breaks=rank == last))
        ),
        "generation_after_a_broken_hand_over": error_of(lambda: groups(prompts))
        if tensor_parallel_size == 1
        else "not tried",
        "rebuild": error_of(rollouts.rebuild_engines),
        "update": error_of(lambda: rollouts.update_weights(Announcement(manifest, 2), stream(breaks=False))),
        "groups_after_update": groups(prompts),
        "version": rollouts.weight_version,
        "why_whole": rollouts.why_whole(),
    }
    if tensor_parallel_size > 1:
        engine_rank = EngineRank(rank % tensor_parallel_size, tensor_parallel_size)
        table = parameter_table(model_shape(HfFolder(models / "a").config()))
        cuts = [cut for mapping in table if not mapping.is_copy for cut in slices_of(mapping, engine_rank)]
        for version, folder in ((3, "a"), (4, "b")):
            full = load_file(models / folder / "model.safetensors")
            slices = [(cut.name, cut.of(full[cut.name])) for cut in cuts]
            rollouts.update_weights(Announcement(manifest, version, engine_rank), slices)
            seen[f"groups_of_{folder}_by_slices"] = groups(prompts)
        misplaced = [(name, part[:-1]) for name, part in slices]
        announced = Announcement(manifest, 5, engine_rank)
        seen["wrong_slices"] = error_of(lambda: rollouts.update_weights(announced, misplaced))
        seen["whole_again"] = error_of(lambda: rollouts.update_weights(Announcement(manifest, 6), tensors.items()))
        seen["groups_of_whole_again"] = groups(prompts)
    every_rank = gather_or_raise(lambda: seen, dist.group.WORLD, "comparison")
    return {**seen, "same_on_all_ranks": all(other == seen for other in every_rank)}


def main(models: Path, tensor_parallel_size: int, result: Path) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    seen = observe(models, tensor_parallel_size)
    if int(os.environ.get("RANK", "0")) == 0:
        result.write_text(json.dumps(seen))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    from tiny_models import save_llama
    from warm_start import start  # not known to a rank, which is this file as well

    models = tmp_path_factory.mktemp("models")
    save_llama(models / "a", 0)
    save_llama(models / "b", 1)
    segments = set(Path("/dev/shm").glob("*cpushm*"))
    results = {}
    for layout, (world_size, tensor_parallel_size) in LAYOUTS.items():
        result = models / f"{layout}.json"
        ranks = world_size if world_size > 1 else 0
        status, output = start(__file__, [models, tensor_parallel_size, result], models / "log", ranks).end()
        assert status == 0, f"{layout}: {output[-4000:]}"
        results[layout] = json.loads(result.read_text())
    assert set(Path("/dev/shm").glob("megatron_rlpr_*cpushm*")) <= segments, "shared memory is left behind"
    return results


pytestmark = pytest.mark.distributed


def tokens(groups: list[list[Any]]) -> list[Any]:
    return [[index, [[seed, token_ids] for seed, token_ids, _, _ in responses]] for index, responses in groups]


def log_probs(groups: list[list[Any]]) -> list[float]:
    return [number for _, responses in groups for response in responses for number in response[2]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_gets_the_same_groups_in_prompt_order(observed: dict[str, Any], layout: str) -> None:
    seen = observed[layout]
    assert seen["same_on_all_ranks"]
    assert [index for index, _ in seen["groups"]] == [20, 21, 22, 23, 24]
    assert {len(responses) for _, responses in seen["groups"]} == {3}
    assert len(seen["fewer_prompts_than_engines"]) == 1


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
@pytest.mark.parametrize("call", ["groups", "other_step", "prompt_twice", "groups_after_update"])
def test_the_layout_changes_neither_tokens_nor_seeds(observed: dict[str, Any], layout: str, call: str) -> None:
    alone, split = observed["1 process"][call], observed[layout][call]
    assert tokens(split) == tokens(alone)
    assert log_probs(split) == pytest.approx(log_probs(alone), abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_when_an_engine_gets_its_prompts_changes_neither_tokens_nor_seeds(
    observed: dict[str, Any], layout: str
) -> None:
    """Here one at a time, by what its engine has left to write."""
    seen = observed[layout]
    assert tokens(seen["as_there_is_room"]) == tokens(seen["groups"])
    assert log_probs(seen["as_there_is_room"]) == pytest.approx(log_probs(seen["groups"]), abs=1e-4)
    assert seen["no_prompts"] == []


def test_other_steps_and_repeated_prompts_get_other_seeds(observed: dict[str, Any]) -> None:
    seen = observed["1 process"]
    calls = [seen["groups"], seen["other_step"], seen["prompt_twice"][1:]]
    seeds = [seed for call in calls for _, responses in call for seed, *_ in responses]
    assert len(set(seeds)) == len(seeds)
    assert seen["prompt_twice"][0] == seen["groups"][0]


def test_a_users_mistake_on_one_rank_is_raised_on_all(observed: dict[str, Any]) -> None:
    for seen in observed.values():
        assert seen["unknown_token_on_one_rank"] == (
            "UserError: prompt 99 (sums): token ids reach beyond the model's vocabulary of 1603; use the model's own "
            "tokenizer"
        )


def test_a_failure_on_one_rank_is_raised_on_all_and_named(observed: dict[str, Any]) -> None:
    for layout in ("2 engines", "1 engine over 2 ranks"):
        seen = observed[layout]
        prefix = "RankError: the weight hand-over failed on 1 of 2 ranks: rank 1: WeightHandoverError: "
        assert (
            seen["wrong_manifest_on_one_rank"] == prefix + "weights do not fit the engine's model; unexpected: surplus"
        )
        assert seen["broken_stream_on_one_rank"] == prefix + "hand-over 1 failed: the exporter went away"
        assert seen["tensors_taken_before_agreement"] == 0
    refused = observed["2 engines"]["generation_after_a_broken_hand_over"]
    assert refused.startswith(
        "RankError: generation failed on 1 of 2 ranks: rank 1: RolloutError: the engine holds no usable weights"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_good_hand_over_reaches_every_engine(observed: dict[str, Any], layout: str) -> None:
    """Here with engines that were all made anew after a hand-over that had failed on one rank."""
    seen = observed[layout]
    assert seen["rebuild"] == "no error"
    assert seen["update"] == "no error"
    assert seen["version"] == 2
    assert tokens(seen["groups_after_update"]) != tokens(seen["groups"])
    assert all(response[3] == [2] for _, responses in seen["groups_after_update"] for response in responses)


def test_a_rank_of_an_engine_takes_its_slices_as_it_takes_whole_tensors(observed: dict[str, Any]) -> None:
    """Bit for bit, and a hand-over of whole tensors works after them, and after one that failed."""

    def without_versions(groups: list[list[Any]]) -> list[Any]:
        return [[index, [response[:3] for response in responses]] for index, responses in groups]

    seen = observed["1 engine over 2 ranks"]
    assert seen["why_whole"] == ""
    assert without_versions(seen["groups_of_a_by_slices"]) == without_versions(seen["groups"])
    assert without_versions(seen["groups_of_b_by_slices"]) == without_versions(seen["groups_after_update"])
    assert "its manifest announced" in seen["wrong_slices"]
    assert seen["whole_again"] == "no error"
    assert without_versions(seen["groups_of_whole_again"]) == without_versions(seen["groups_after_update"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
