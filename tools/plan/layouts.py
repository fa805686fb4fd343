"""Other layouts of the same job that fit: those that change the fewest keys first, of these the fastest."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from megatron_rlpr.config.checks import pipeline
from megatron_rlpr.config.keys import all_keys
from tools.plan.gpus import GPUS_OF_A_NODE
from tools.plan.job import Job, refusals
from tools.plan.memory import memory
from tools.plan.times import phases, step_seconds

_MOST_PROPOSED = 3
_TP, _PP, _VPP, _EP = (
    f"actor.{kind}_model_parallel_size" for kind in ("tensor", "pipeline", "virtual_pipeline", "expert")
)
_SP, _LAYOUT, _ENGINE = (
    "actor.sequence_parallel",
    "actor.pipeline_model_parallel_layout",
    "rollout.tensor_parallel_size",
)


@dataclass(frozen=True)
class Proposal:
    """changes: values of keys, by their full names. seconds: expected of a step."""

    changes: dict[str, Any]
    seconds: float

    @property
    def text(self) -> str:
        """As overrides of a command line."""
        values = {True: "true", False: "false"}
        written = (f"{key}={values[v] if isinstance(v, bool) else v}" for key, v in self.changes.items())
        return f"{shlex.join(written)} ({self.seconds:.0f} s a step)"


def proposals(job: Job) -> list[Proposal]:
    """The best few."""
    best: list[Proposal] = []
    for _, group in groupby(sorted(_candidates(job), key=_distance), _distance):
        found = []
        for changes in group:
            other = job.changed(changes)
            planned = memory(other)
            if not any(planned.faults(other)):
                found.append(Proposal(changes, step_seconds(other, phases(other, planned.cache_tokens))))
        for proposal in sorted(found, key=lambda proposal: proposal.seconds):
            known = any(proposal.changes.keys() == other.changes.keys() for other in best)  # the best of these values
            if len(best) < _MOST_PROPOSED and not known and not refusals(job.changed(proposal.changes)):
                best.append(proposal)
        if len(best) == _MOST_PROPOSED:
            break
    return best


def _distance(changes: dict[str, Any]) -> int:
    """How many keys a reader would say are changed: sequence parallelism and a layout follow from others."""
    return len(changes.keys() - {_SP, _LAYOUT, _VPP})


def _candidates(job: Job) -> Iterator[dict[str, Any]]:
    """Changed keys alone."""
    actor, rollout, layers, powers = job.actor, job.config.rollout, job.shape.num_layers, [1, 2, 4, 8, 16, 32]
    longest = job.config.data.longest_prompt + job.config.data.max_response_length
    budget = actor.max_tokens_per_micro_batch
    tensor = [size for size in powers if size <= GPUS_OF_A_NODE and job.gpus % size == 0]
    choices: dict[str, Iterable[Any]] = {
        _TP: tensor,
        _PP: powers,
        _EP: [size for size in powers if job.shape.experts and job.shape.experts.count % size == 0] or [1],
        "actor.recompute_granularity": {actor.recompute_granularity, "full"},
        "actor.offload": {actor.offload, "optimizer"},
        "actor.use_distributed_optimizer": {actor.use_distributed_optimizer, True},
        _ENGINE: dict.fromkeys([rollout.tensor_parallel_size, *tensor]),
        "actor.max_tokens_per_micro_batch": {budget, *(b for b in (32768, 16384, 8192) if longest <= b < budget)},
        "rollout.gpu_memory_utilization": {rollout.gpu_memory_utilization, 0.65, 0.55},
    }
    for chosen in product(*map(sorted, choices.values())):
        values: dict[str, Any] = dict(zip(choices, chosen, strict=True))
        tp, pp, engine = values[_TP], values[_PP], values[_ENGINE]
        if job.gpus % (tp * pp) or job.gpus // (tp * pp) % values[_EP] or pp > layers or job.gpus % engine:
            continue
        values[_SP] = tp > 1
        if pp != actor.pipeline_model_parallel_size:
            rounds = actor.virtual_pipeline_model_parallel_size if pp > 1 else 1
            values[_VPP] = rounds if layers % (pp * rounds) == 0 else 1
            values[_LAYOUT] = "" if layers % pp == 0 else pipeline.nearly_even(layers, pp)
        changes = {key: value for key, value in values.items() if value != all_keys()[key].value(job.config)}
        if changes and _can_be_cut(job, tp, engine):
            yield changes


def _can_be_cut(job: Job, tensor: int, engine: int) -> bool:
    """Whether heads and columns can be shared evenly; `refusals` looks at the rest."""
    shape = job.shape
    sizes = (shape.num_attention_heads, shape.ffn_hidden_size)
    groups = shape.num_query_groups
    return all(size % n == 0 for size in sizes for n in (tensor, engine)) and all(
        groups % n == 0 or n % groups == 0 for n in (tensor, engine)
    )
