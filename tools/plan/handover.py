"""What a hand-over sends to a GPU, by the exporter's own plan (`weights.export_plan`), counted once for every kind of
parameter: layers are alike, and so are experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from megatron_rlpr.weights.architectures import ModelShape
from megatron_rlpr.weights.engine_slices import EngineRank, why_whole
from megatron_rlpr.weights.export_plan import ExportPlan, Owner
from tools.plan.job import Job
from tools.plan.parameters import kinds


@dataclass(frozen=True)
class Received:
    """Elements that reach a rank: of its own stage those of the ranks that cut its layers and experts, and experts of
    its stage's other expert-parallel ranks; and all of other stages."""

    gathered: int = 0
    experts: int = 0
    stages: int = 0

    @property
    def total(self) -> int:
        return self.gathered + self.experts + self.stages

    def __add__(self, other: Received) -> Received:
        return Received(self.gathered + other.gathered, self.experts + other.experts, self.stages + other.stages)

    def __mul__(self, times: int) -> Received:
        return Received(self.gathered * times, self.experts * times, self.stages * times)


def received(job: Job) -> Received:
    """Of the rank that gets most."""
    cut = _cut(job)
    return max(
        (
            _of_stage(job, cut, EngineRank(rank, cut.engine), stage)
            for rank in range(cut.engine)
            for stage in range(job.stages)
        ),
        key=lambda found: found.total,
    )


def sending_ranks(job: Job) -> int:
    """Of the trainer, who send to engines in Ray: one with whole tensors, else one for each rank of an engine."""
    return _cut(job).engine


def largest_parameter(job: Job) -> int:
    """Elements of the largest parameter that travels, or of its slices."""
    return _largest(job.shape, _cut(job))


@dataclass(frozen=True)
class _Cut:
    """Ranks that cut a layer and an expert, and those that share experts and an engine (1: it gets whole tensors)."""

    tensor: int
    expert_tensor: int
    expert: int
    engine: int


def _cut(job: Job) -> _Cut:
    rollout, actor = job.config.rollout, job.actor
    size = rollout.tensor_parallel_size
    otherwise = rollout.quantization != "none" or rollout.enable_expert_parallel or rollout.data_parallel_size > 1
    whole = job.config.weights.sharded == "false" or otherwise or _why_whole(job.shape, size, job.gpus // job.stages)
    return _Cut(job.tensor, actor.expert_tensor_size, actor.expert_model_parallel_size, 1 if whole else size)


@cache
def _why_whole(shape: ModelShape, engine: int, stage_ranks: int) -> str:
    return why_whole(replace(shape, num_layers=1, layer_windows=()), engine, stage_ranks)


def _of_stage(job: Job, cut: _Cut, engine: EngineRank, stage: int) -> Received:
    counts = {"first": stage == 0, "layer": sum(job.layers(stage)), "last": stage == job.stages - 1}
    every = {"first": 1, "layer": job.shape.num_layers, "last": 1}
    found = Received()
    for place, (own, other) in _places(job.shape, cut, engine).items():
        found += own * int(counts[place]) + other * (every[place] - counts[place])
    return found


@cache
def _places(shape: ModelShape, cut: _Cut, engine: EngineRank) -> dict[str, tuple[Received, Received]]:
    """Of what is before, in and behind the layers: where the own stage holds it, and where another does."""
    found = {}
    for place in ("first", "layer", "last"):
        own = other = Received()
        plan = _plan(shape, cut, engine, place)
        for index, (mapping, count) in enumerate(kinds(shape)[place]):
            of_expert = mapping.of_expert
            mine = count // cut.expert if of_expert else count
            held, theirs, away = (
                plan.received_numel(index, Owner(stage, expert, of_expert), 0, 0)
                for stage, expert in ((0, 0), (0, 1), (1, 0))
            )
            own += Received(held * mine, theirs * (count - mine))
            other += Received(stages=away * count)
        found[place] = own, other
    return found


@cache
def _largest(shape: ModelShape, cut: _Cut) -> int:
    plans = [_plan(shape, cut, EngineRank(0, cut.engine), place) for place in ("first", "layer", "last")]
    return max(plan.most_numel(index) for plan in plans for index in range(len(plan.table)))


def _plan(shape: ModelShape, cut: _Cut, engine: EngineRank, place: str) -> ExportPlan:
    return ExportPlan([mapping for mapping, _ in kinds(shape)[place]], cut.tensor, cut.expert_tensor, engine)
