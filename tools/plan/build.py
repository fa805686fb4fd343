"""The dry run: the real Megatron model of one rank of every pipeline stage, without storage.

Each stage's rank stands at another tensor- and data-parallel place. What is looked at: every parameter has its place in
the table of both worlds and its shape, and what all stages (and expert-parallel ranks) hold is the whole model once,
which is also what a hand-over and an export name; the bytes of weights, gradients and optimizer are the planned ones;
what a checkpoint would be loaded into is what would be saved, and the first rank plans and copies one.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from megatron_rlpr.config.schema import ActorConfig
from tools import emulated_kernels
from tools.plan.gpus import GIB
from tools.plan.job import Job
from tools.plan.memory import state_bytes

TOLERANCE = 0.01
"""Relative difference between planned and built bytes."""


def prepare() -> Callable[[str], Any] | None:
    """Call before anything imports Megatron-Core. What `build` needs: where Transformer Engine's Python is, what
    chooses the GPU of an FP8 recipe."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same on any machine
    return emulated_kernels.install() if emulated_kernels.are_here() else None


def build(job: Job, pretend: Callable[[str], Any] | None) -> dict[str, Any]:
    """What was built, stage by stage, and every mismatch, as sentences."""
    if pretend is not None:
        pretend(job.actor.fp8_recipe)
    job = replace(job, config=replace(job.config, actor=_buildable(job, pretend is not None)))
    from tools.plan.built_stage import build_stage

    begin = time.monotonic()
    stages = [build_stage(job, stage) for stage in range(job.stages)]
    parameters = [stage["parameters"] for stage in stages]
    return {
        "layers": "Transformer Engine" if pretend is not None else "Megatron-Core",
        "stages": [{key: value for key, value in stage.items() if key not in ("held", "faults")} for stage in stages],
        "imbalance": max(parameters) / (sum(parameters) / len(parameters)),
        "largest_difference": max(share for *_, share in _compared(job, stages)),
        "mismatches": [*differences(job, stages), *misplaced(job, [stage["held"] for stage in stages])],
        "seconds": time.monotonic() - begin,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def summary(report: dict[str, Any]) -> str:
    """A line a stage, and the mismatches."""
    lines = [
        f"built on {report['layers']}'s layers in {report['seconds']:.0f} s and {report['peak_memory'] / GIB:.1f} GiB: "
        f"the fullest stage has {report['imbalance']:.3f} times the mean's parameters"
    ]
    for stage in report["stages"]:
        built = ", ".join(f"{name} {size / GIB:.2f}" for name, size in stage["bytes"].items())
        lines.append(f"rank {stage['rank']}: {stage['parameters']:,} parameters; GiB: {built}")
    lines += [f"MISMATCH {found}" for found in report["mismatches"]]
    verdict = (
        f"{len(report['mismatches'])} mismatches" if report["mismatches"] else "every name and shape is as planned"
    )
    return "\n".join([*lines, f"{verdict}; bytes differ by at most {report['largest_difference']:.2%}"])


def differences(job: Job, stages: list[dict[str, Any]]) -> Iterator[str]:
    """What a stage found, and its bytes where they are not the planned ones."""
    for number, stage in enumerate(stages):
        yield from (f"stage {number}: {fault}" for fault in stage["faults"])
    for number, name, size, planned, share in _compared(job, stages):
        if share > TOLERANCE:
            yield f"stage {number}: {name} take {size:,} bytes, planned were {planned:,.0f}"


def _compared(job: Job, stages: list[dict[str, Any]]) -> Iterator[tuple[int, str, int, float, float]]:
    """Stage, name, bytes that were built and planned, and by which share of the planned ones they differ."""
    for number, stage in enumerate(stages):
        planned = state_bytes(job, number)
        for name, size in stage["bytes"].items():
            yield number, name, size, planned[name], abs(size - planned[name]) / planned[name]


def misplaced(job: Job, held: list[list[set[str]]]) -> Iterator[str]:
    """Tensors that are nowhere, or in places that should not have them.

    held: by stage and expert-parallel rank, the Hugging Face names of what is there.
    """
    from megatron_rlpr.weights.architectures import parameter_table

    stages_of = Counter(name for stage in held for name in set.union(*stage))
    ranks_of = Counter(name for stage in held for rank in stage for name in rank)
    for mapping in parameter_table(job.shape):
        for name in (tensor.name for tensor in mapping.hf if not mapping.is_copy):
            ranks = 1 if mapping.of_expert else job.actor.expert_model_parallel_size
            if (stages_of[name], ranks_of[name]) != (1, ranks):
                places = f"{stages_of[name]} stages, {ranks_of[name]} of their expert-parallel ranks"
                yield f"{name} is on {places}; expected 1, {ranks}"


def _buildable(job: Job, has_fp8: bool) -> ActorConfig:
    """FP8 changes no name and no size but with fp8_param; without Transformer Engine there is none."""
    plain: dict[str, Any] = {"fp8": "", "fp8_recipe": "auto", "fp8_param": False, "first_last_layers_bf16": False}
    return job.actor if has_fp8 else replace(job.actor, **plain, use_precision_aware_optimizer=False)
