"""tools.plan counts what a hand-over sends kind by kind, and finds what the exporter's plan of every parameter says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tools.bench.handover_plan import Sizes, bytes_of_ranks
from tools.plan.__main__ import planned
from tools.plan.handover import largest_parameter, received
from tools.plan.job import Job
from tools.plan.memory import memory
from tools.plan.parameters import of_model

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
DENSE, GEMMA, EXPERTS = "qwen2.5-72b", "gemma-2-2b-it", "qwen3-30b-a3b"


@cache
def job_of_recipe(recipe: str) -> Job:
    return planned(["--config", str(RECIPES / f"{recipe}.yaml"), "--gpus", "32"]).job


def laid_out(recipe: str, sizes: Sizes, engine: int, **more: object) -> Job:
    job = replace(job_of_recipe(recipe), gpus=sizes.tensor * sizes.pipeline * sizes.data)
    return job.changed(
        {
            "actor.tensor_model_parallel_size": sizes.tensor,
            "actor.pipeline_model_parallel_size": sizes.pipeline,
            "actor.expert_model_parallel_size": sizes.expert,
            "actor.expert_tensor_parallel_size": sizes.expert_tensor,
            "actor.pipeline_model_parallel_layout": "",
            "rollout.tensor_parallel_size": engine,
        }
        | {f"weights.{name}": value for name, value in more.items()}
    )


@pytest.mark.parametrize(
    ("recipe", "sizes", "engine"),
    [
        (DENSE, Sizes(8, 8, 1), 8),
        (DENSE, Sizes(4, 8, 2), 8),
        (DENSE, Sizes(8, 8, 1), 4),
        (DENSE, Sizes(8, 2, 2), 1),
        (GEMMA, Sizes(2, 2, 1), 2),
        (GEMMA, Sizes(1, 1, 2), 2),
        (EXPERTS, Sizes(4, 8, 8, expert=8, expert_tensor=1), 8),
        (EXPERTS, Sizes(2, 4, 4, expert=4, expert_tensor=2), 2),
        (EXPERTS, Sizes(1, 1, 8, expert=8, expert_tensor=1), 2),
    ],
)
def test_it_is_what_the_exporter_plans(recipe: str, sizes: Sizes, engine: int) -> None:
    job = laid_out(recipe, sizes, engine)
    assert received(job).total * job.itemsize == max(rank.received for rank in bytes_of_ranks(recipe, sizes, engine))


def test_whole_tensors_are_counted_where_engines_get_them() -> None:
    sizes = Sizes(8, 8, 1)
    whole = laid_out(DENSE, sizes, 8, sharded="false")
    assert received(whole) == received(laid_out(DENSE, sizes, 1))
    assert received(whole).total > 8 * received(laid_out(DENSE, sizes, 8)).total
    elsewhere = whole.changed({"rollout.placement": "ray", "weights.sharded": "auto"})
    assert received(elsewhere) == received(laid_out(DENSE, sizes, 8)), "engines in Ray get slices, too"
    kept = [memory(laid_out(DENSE, sizes, size, delta=True)).host["last hand-over"] for size in (1, 8)]
    assert kept == [2 * of_model(whole.shape).total, 2 * of_model(whole.shape).total / 8], "shared by who sends"
    assert largest_parameter(whole) == whole.shape.vocab_size * whole.shape.hidden_size
    assert largest_parameter(laid_out(DENSE, sizes, 8)) == largest_parameter(whole) // 8
