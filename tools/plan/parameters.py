"""How many weights a rank holds, from the table that names every parameter of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from megatron_rlpr.weights.architectures import ModelShape, parameter_table
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


def of_stage(job: Job, stage: int) -> Weights:
    """What a rank of this pipeline stage holds."""
    first, layer, last, copy = _pieces(
        job.shape, job.tensor, job.actor.expert_tensor_size, job.actor.expert_model_parallel_size
    )
    held = layer * sum(job.layers(stage))
    if stage == 0:
        held += first
    if stage == job.stages - 1:
        held += last
        if stage:  # without the embedding, it needs a copy of what is tied to it
            held += copy
    return held


@cache
def _pieces(
    shape: ModelShape, tensor: int, expert_tensor: int, expert: int
) -> tuple[Weights, Weights, Weights, Weights]:
    """Of one rank: before the layers, of a layer, behind them, and an output head that is a copy of the embedding."""
    pieces = {"first": Weights(), "layer": Weights(), "last": Weights(), "copy": Weights()}
    for mapping in parameter_table(replace(shape, num_layers=1, layer_windows=())):
        name = mapping.megatron[0]
        size = mapping.shard_numel(expert_tensor if mapping.of_expert else tensor)
        in_layer = name.startswith("decoder.layers.")
        linear = size if in_layer and ".linear_" in name and len(mapping.hf[0].shape) == 2 else 0
        found = Weights(0, size, linear) if mapping.of_expert else Weights(size, 0, linear)
        place = "copy" if mapping.is_copy else "layer" if in_layer else "first" if "embedding" in name else "last"
        pieces[place] += found
    layer = pieces["layer"]
    layer_of_rank = Weights(layer.dense, layer.expert // expert, layer.linear - layer.expert + layer.expert // expert)
    return pieces["first"], layer_of_rank, pieces["last"], pieces["copy"]


@cache
def of_model(shape: ModelShape) -> Weights:
    """All weights of the model, tied ones once."""
    first, layer, last, _ = _pieces(shape, 1, 1, 1)
    return first + layer * shape.num_layers + last


def of_engine_rank(job: Job) -> float:
    """Weights of one rank of an engine; where it has more ranks than key/value heads, these few more are left out."""
    whole, rollout = of_model(job.shape), job.config.rollout
    experts = rollout.tensor_parallel_size * rollout.data_parallel_size
    return whole.dense / rollout.tensor_parallel_size + whole.expert / experts
