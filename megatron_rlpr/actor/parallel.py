"""Process groups of one run: torch.distributed, and Megatron's tensor, pipeline, context, expert and data parallel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_rlpr.actor.cpu import megatron as cpu
from megatron_rlpr.config.schema import ActorConfig


@dataclass(frozen=True)
class Layout:
    """Where this rank stands. Only the first tensor rank of the last stage holds the model's outputs for the world.

    The context-parallel ranks of a data-parallel rank share its micro-batches: each has the outputs of its own tokens.

    With a virtual pipeline data flows through all stages several times, and ends on the last stage all the same.
    """

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int
    context_rank: int = 0
    context_size: int = 1

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def reports_outputs(self) -> bool:
        """True on exactly one rank per data-parallel and context-parallel rank: whose outputs are sent to everybody."""
        return self.is_last_stage and self.tensor_rank == 0


def initialize(actor: ActorConfig, seed: int, timeout_s: int = 1800) -> Layout:
    """Start torch.distributed (if needed) and Megatron's groups; returns this rank's place.

    Works without torchrun as a world of one process. NCCL with CUDA, gloo without.
    """
    if not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    rounds = actor.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=actor.tensor_model_parallel_size,
        pipeline_model_parallel_size=actor.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=rounds if rounds > 1 else None,
        context_parallel_size=actor.context_parallel_size,
        # Experts are spread over the ranks that the layers' tensor-parallel and data-parallel ranks are together, and
        # cut by some of them.
        expert_model_parallel_size=actor.expert_model_parallel_size,
        expert_tensor_parallel_size=actor.expert_tensor_size,
    )
    cpu.install()
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Layout(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
    )
