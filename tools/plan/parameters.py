"""How many weights a rank holds, from the table that names every parameter of the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from megatron_rlpr.weights.architectures import ModelShape, parameter_table
from megatron_rlpr.weights.mapping import ParamMapping
from tools.plan.job import Job


@dataclass(frozen=True)
class Weights:
    """dense: what data-parallel ranks share; expert: experts, of which expert-parallel ranks hold their own.
    linear: how many of both are weights of linear layers, which FP8 products take."""

    dense: int = 0
    expert: int = 0
    linear: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.expert

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.dense + other.dense, self.expert + other.expert, self.linear + other.linear)

    def __mul__(self, times: int) -> Weights:
        return Weights(self.dense * times, self.expert * times, self.linear * times)


@cache
def kinds(shape: ModelShape) -> dict[str, tuple[tuple[ParamMapping, int], ...]]:
    """Before the layers ("first"), of a layer, behind them ("last"), and an output head that is a "copy" of the
    embedding: one parameter of each kind, and how many such ones there are."""
    counts: dict[tuple[Any, ...], int] = Counter()
    found: dict[tuple[Any, ...], ParamMapping] = {}
    for mapping in parameter_table(replace(shape, num_layers=1, layer_windows=())):
        name = mapping.megatron[0]
        inside = "layer" if name.startswith("decoder.layers.") else "first" if "embedding" in name else "last"
        place = "copy" if mapping.is_copy else inside
        kind = (place, mapping.layout, mapping.of_expert, ".linear_" in name, *(tensor.shape for tensor in mapping.hf))
        counts[kind] += 1
        found.setdefault(kind, mapping)
    return {
        place: tuple((mapping, counts[kind]) for kind, mapping in found.items() if kind[0] == place)
        for place in ("first", "layer", "last", "copy")
    }


def of_stage(job: Job, stage: int) -> Weights:
    """What a rank of this pipeline stage holds."""
    actor = job.actor
    pieces = _pieces(job.shape, job.tensor, actor.expert_tensor_size, actor.expert_model_parallel_size)
    held = pieces["layer"] * sum(job.layers(stage))
    if stage == 0:
        held += pieces["first"]
    if stage == job.stages - 1:
        held += pieces["last"]
        if stage:  # without the embedding, it needs a copy of what is tied to it
            held += pieces["copy"]
    return held


@cache
def _pieces(shape: ModelShape, tensor: int, expert_tensor: int, expert: int) -> dict[str, Weights]:
    """Of one rank, by place."""
    pieces = {}
    for place, parameters in kinds(shape).items():
        pieces[place] = Weights()
        for mapping, count in parameters:
            size = mapping.shard_numel(expert_tensor if mapping.of_expert else tensor)
            size *= count // (expert if mapping.of_expert else 1)
            matrix = place == "layer" and ".linear_" in mapping.megatron[0] and len(mapping.hf[0].shape) == 2
            held = {"expert" if mapping.of_expert else "dense": size, "linear": size if matrix else 0}
            pieces[place] += Weights(**held)
    return pieces


@cache
def of_model(shape: ModelShape) -> Weights:
    """All weights of the model, tied ones once."""
    pieces = _pieces(shape, 1, 1, 1)
    return pieces["first"] + pieces["layer"] * shape.num_layers + pieces["last"]


def of_engine_rank(job: Job) -> float:
    """Weights of one rank of an engine; where it has more ranks than key/value heads, these few more are left out."""
    whole, rollout = of_model(job.shape), job.config.rollout
    experts = rollout.tensor_parallel_size * rollout.data_parallel_size
    return whole.dense / rollout.tensor_parallel_size + whole.expert / experts
