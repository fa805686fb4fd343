"""tools.plan: what a rank holds, what fits, what is proposed instead, and the comment behind a recipe."""

from __future__ import annotations

import json
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.config.checks.pipeline import nearly_even
from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.hf_folder import HfFolder
from tools.plan.__main__ import main, plan, planned
from tools.plan.build import differences, misplaced
from tools.plan.job import MODELS, Job
from tools.plan.memory import memory, state_bytes
from tools.plan.parameters import of_model, of_stage
from tools.plan.table import read_comments
from tools.plan.times import bubble, phases

RECIPES = MODELS.parent
PUBLISHED = {
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.1-70b-instruct": 70_553_706_496,
    "llama-3.1-405b-instruct": 405_853_388_800,
    "gemma-2-2b-it": 2_614_341_888,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}
"""Weights of the published files."""


def arguments(recipe: str, gpus: int, *more: str) -> list[str]:
    return ["--config", str(RECIPES / f"{recipe}.yaml"), "--gpus", str(gpus), *more]


@cache
def job_of_recipe(recipe: str) -> Job:
    return planned(arguments(recipe, 16)).job


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_models_have_as_many_weights_as_the_published_ones(name: str) -> None:
    assert of_model(model_shape(HfFolder(MODELS / name).config())).total == PUBLISHED[name]


def test_every_kept_model_is_compared() -> None:
    assert {path.name for path in MODELS.iterdir()} == PUBLISHED.keys()


@given(
    stages=st.sampled_from([1, 2, 3, 4, 6]),
    rounds=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4, 8]),
    recipe=st.sampled_from(["gemma-2-2b-it", "qwen3-30b-a3b"]),
)
@settings(deadline=None, max_examples=20)
def test_the_ranks_hold_the_model_once(stages: int, rounds: int, expert: int, recipe: str) -> None:
    """And the last of several stages, or rounds, a copy of a tied embedding."""
    job = job_of_recipe(recipe)
    parts = stages * rounds if stages > 1 else 1
    job = job.changed(
        {
            "actor.tensor_model_parallel_size": 1,
            "actor.expert_model_parallel_size": expert if job.shape.experts else 1,
            "actor.pipeline_model_parallel_size": stages,
            "actor.virtual_pipeline_model_parallel_size": rounds if stages > 1 else 1,
            "actor.pipeline_model_parallel_layout": nearly_even(job.shape.num_layers, parts) if parts > 1 else "",
        }
    )
    held = [of_stage(job, stage) for stage in range(stages)]
    copies = job.shape.vocab_size * job.shape.hidden_size if job.shape.tied_embeddings and parts > 1 else 0
    spread = job.actor.expert_model_parallel_size
    assert sum(w.dense + spread * w.expert for w in held) == of_model(job.shape).total + copies


def test_what_does_not_fit_is_refused_with_its_largest_term_and_layouts_that_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = arguments("qwen2.5-72b", 32, "actor.pipeline_model_parallel_size=1")
    assert main(wanted) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "update needs" in output.err
    assert "(largest term: gradients, 33.9 GiB)" in output.err
    found = planned(wanted)
    assert found.proposals
    assert found.proposals[0].text in output.err
    assert "actor.pipeline_model_parallel_size=2" in found.proposals[0].text
    for proposal in found.proposals:
        overrides = shlex.split(proposal.text.rpartition(" (")[0])
        assert not planned([*wanted, *overrides]).faults
    assert [p.seconds for p in found.proposals if len(p.changes) == len(found.proposals[0].changes)] == sorted(
        p.seconds for p in found.proposals if len(p.changes) == len(found.proposals[0].changes)
    )


def test_where_nothing_fits_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("qwen2.5-72b", 16)) == 2
    assert "no layout of so many GPUs fits" in capsys.readouterr().err


def test_the_largest_token_budget_is_the_last_that_fits() -> None:
    job = planned(arguments("qwen2.5-7b", 8)).job
    budget = plan(job).budget
    key = "actor.max_tokens_per_micro_batch"
    assert not list(memory(job.changed({key: budget})).faults(job))
    assert list(memory(job.changed({key: budget + 256})).faults(job))


def test_an_offloaded_optimizer_is_not_there_while_engines_generate_and_costs_host_memory() -> None:
    job = planned(arguments("qwen2.5-7b", 8)).job
    kept = memory(job.changed({"actor.offload": "none"}))
    assert kept.phases["generate"]["optimizer"] == state_bytes(job, 0)["optimizer"]
    moved = memory(job)
    assert "optimizer" not in moved.phases["generate"]
    assert moved.host["optimizer while engines generate"] == state_bytes(job, 0)["optimizer"]
    assert moved.phases["update"] == kept.phases["update"]


def test_a_pipeline_waits_less_with_more_micro_batches_and_rounds() -> None:
    job = planned(arguments("qwen2.5-72b", 256)).job
    deep = job.changed({"actor.pipeline_model_parallel_size": 8})
    assert bubble(deep, 4) == 7 / 11
    assert bubble(deep, 28) == 1 / 5
    assert bubble(deep.changed({"actor.virtual_pipeline_model_parallel_size": 2}), 28) == 7 / 63
    assert bubble(job.changed({"actor.pipeline_model_parallel_size": 1}), 4) == 0


def test_more_gpus_and_shared_prefixes_are_faster() -> None:
    few, many = (planned(arguments("qwen2.5-7b", gpus)) for gpus in (8, 16))
    assert many.phases["update"].flops == pytest.approx(few.phases["update"].flops / 2)
    for phase in ("generate", "score", "update"):
        assert many.phases[phase].expected < few.phases[phase].expected
        assert few.phases[phase].at_best < few.phases[phase].expected
    alone = few.job.changed({"actor.share_prefixes": False})
    assert phases(alone, 1e6)["score"].flops > 1.9 * few.phases["score"].flops


def test_fp8_needs_a_gpu_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("qwen2.5-7b", 8, "--gpu", "a100", "actor.fp8=hybrid")) == 2
    assert "GPUs of the kind a100 do not compute in FP8" in capsys.readouterr().err


def test_the_table_is_written_behind_the_recipe_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    shutil.copy(RECIPES / "qwen2.5-7b.yaml", recipe)
    before, tables = read_comments(recipe)
    command = ["--config", str(recipe), "--gpus", "16"]
    for _ in range(2):
        assert main([*command, "--write"]) == 0
    text, written = read_comments(recipe)
    assert text == before
    assert written.keys() == {*tables, " ".join(command)}
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["memory"]["update"]["gradients"] > 2**30


def test_the_dry_run_tells_what_is_missing_twice_there_or_of_another_size() -> None:
    job = planned(arguments("qwen3-30b-a3b", 16)).job
    table = [mapping for mapping in parameter_table(job.shape) if not mapping.is_copy]
    per_rank = 128 // 8

    def held(rank: int) -> set[str]:
        mine = range(rank * per_rank, (rank + 1) * per_rank)
        named = ((m, t.name) for m in table for t in m.hf)
        return {name for m, name in named if not m.of_expert or int(name.split("experts.")[1].split(".")[0]) in mine}

    ranks = [held(rank) for rank in range(8)]
    assert not list(misplaced(job, [ranks]))
    ranks[3].remove("model.layers.5.mlp.experts.50.up_proj.weight")
    ranks[4].add("model.layers.0.mlp.experts.0.up_proj.weight")
    found = " ".join(misplaced(job, [ranks]))
    assert "layers.5.mlp.experts.50.up_proj.weight is on 0 stages, 0 of" in found
    assert "layers.0.mlp.experts.0.up_proj.weight is on 1 stages, 2 of" in found
    sizes = state_bytes(job, 0)
    stage = {"bytes": {**sizes, "optimizer": 1.02 * sizes["optimizer"]}, "faults": ["a fault"]}
    assert [line.split(":")[1].split(" take")[0] for line in differences(job, [stage])] == [" a fault", " optimizer"]
