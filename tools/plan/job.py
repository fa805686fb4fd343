"""A recipe on so many GPUs of a kind: the sizes that everything else is computed from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_rlpr.config.checks import pipeline, pure
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import ActorConfig, Config
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import ModelShape, model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from tools.plan.gpus import GPUS, GPUS_OF_A_NODE, Gpu

MODELS = Path(__file__).parents[2] / "examples" / "recipes" / "models"
"""Folders with the config.json of the recipes' models, named in lower case."""


@dataclass(frozen=True)
class Workload:
    """Mean tokens of prompts, responses and reference answers."""

    prompt: int
    response: int
    reference: int


@dataclass(frozen=True)
class Job:
    """gpus: of the actor; those of engines in Ray are others."""

    config: Config
    shape: ModelShape
    gpus: int
    kind: str
    workload: Workload

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.kind]

    @property
    def actor(self) -> ActorConfig:
        return self.config.actor

    @property
    def tensor(self) -> int:
        return self.actor.tensor_model_parallel_size

    @property
    def stages(self) -> int:
        return self.actor.pipeline_model_parallel_size

    @property
    def rounds(self) -> int:
        """Parts of the model on each stage."""
        return self.actor.virtual_pipeline_model_parallel_size

    @property
    def itemsize(self) -> int:
        """Bytes of a weight and of an activation of the actor."""
        return 2 if self.actor.dtype == "bfloat16" else 4

    @property
    def data(self) -> int:
        """Ranks that take other micro-batches."""
        return self.gpus // (self.tensor * self.stages * self.actor.context_parallel_size)

    @property
    def sharers(self) -> int:
        """Ranks that hold the same layers, and share their optimizer's state."""
        return self.gpus // (self.tensor * self.stages)

    @property
    def expert_sharers(self) -> int:
        """The same of experts."""
        experts = self.actor.expert_tensor_size * self.actor.expert_model_parallel_size
        return self.gpus // (experts * self.stages)

    @property
    def sequence(self) -> int:
        """Ranks that share the activations between the tensor-parallel regions."""
        return self.tensor if self.actor.sequence_parallel else 1

    @property
    def sleeps(self) -> bool:
        """Whether engines give their memory up while the policy trains."""
        return self.config.rollout.sleeps(on_gpu=True)

    @property
    def engines(self) -> int:
        rollout = self.config.rollout
        if rollout.placement == "ray":
            return rollout.engines
        return self.gpus // rollout.tensor_parallel_size

    def layers(self, stage: int) -> list[int]:
        """Layers of every part that a stage holds."""
        return pipeline.layers_of_parts(self.actor, self.shape.num_layers)[stage :: self.stages]

    @property
    def most_layers(self) -> int:
        """Of a stage."""
        return max(sum(self.layers(stage)) for stage in range(self.stages))

    def bandwidth(self, ranks: int) -> float:
        """Bytes/s between ranks that stand side by side: within a node, if they fit into one."""
        return self.gpu.nvlink if ranks <= GPUS_OF_A_NODE else self.gpu.network

    def changed(self, changes: dict[str, Any]) -> Job:
        """The same job with other values of some keys, by their full names."""
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            all_keys()[name].set(config, value)
        return replace(self, config=config)


def job_of(config: Config, gpus: int, kind: str, workload: Workload, model: Path | None = None) -> Job:
    """UserError for a recipe that could not run there, whatever its memory.

    model: the folder with its config.json; else model.path, else the one of that name among the recipes' models.
    """
    path = model or Path(config.model.path)
    if not path.exists() and (MODELS / path.name.lower()).is_dir():
        path = MODELS / path.name.lower()
    shape = model_shape(HfFolder(path).config())
    if config.actor.fp8 and config.actor.fp8_recipe == "auto":
        config.actor.fp8_recipe = GPUS[kind].fp8_recipe or "auto"  # type: ignore[assignment]
    job = Job(config, shape, gpus, kind, workload)
    for refusal in refusals(job):
        raise UserError(refusal)
    return job


def refusals(job: Job) -> list[str]:
    """Why it could not run there, whatever its memory."""
    found = list(pure.refusals(job.config, job.gpus))
    if job.actor.fp8 and not job.gpu.fp8:
        found.append(f"actor.fp8={job.actor.fp8}: GPUs of the kind {job.kind} do not compute in FP8: set actor.fp8=")
    if found:
        return found
    from megatron_rlpr.config.checks import model  # slow to import

    return [*model.layout_refusals(job.config, job.shape), *model.fp8_refusals(job.config, job.shape)]
