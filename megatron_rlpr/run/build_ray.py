"""Engines in Ray, from a checked configuration."""

from __future__ import annotations

import os

import torch

from megatron_rlpr.config.schema import Config
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.actor import EngineSettings
from megatron_rlpr.rollout.ray.engine import EngineResources
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.weights.transports.choice import Transports


def ray_rollouts(config: Config, console: Console) -> RayRollouts:
    """Connect the first rank to Ray and start the pool. Collective."""
    rollout = config.rollout
    settings = EngineSettings(
        model_path=os.path.abspath(config.model.path),
        dtype=config.actor.dtype if rollout.dtype == "auto" else rollout.dtype,
        max_model_len=longest_prompt(config) + config.data.max_response_length,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gb=rollout.kv_cache_gb,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_parallel_size,
        seed=config.trainer.seed,
        threads=rollout.cpus_per_engine,
    )

    def make_pool() -> EnginePool:
        ray_cluster.connect(rollout.ray_address, cpus=rollout.engines * rollout.cpus_per_engine)
        return EnginePool(
            rollout.engines,
            settings,
            EngineResources(rollout.cpus_per_engine, rollout.tensor_parallel_size if torch.cuda.is_available() else 0),
            timeout_s=rollout.engine_timeout_s,
            transports=Transports(
                config.weights.transport,
                ray_cluster.node_address(),
                config.weights.bucket_mb * 2**20,
                rollout.engine_timeout_s,
            ),
            on_event=console.message,
        )

    with console.phase(f"starting {rollout.engines} vLLM engines in Ray"):
        return RayRollouts(make_pool)


def longest_prompt(config: Config) -> int:
    """Most tokens a prompt of this run may have."""
    return max(config.data.max_prompt_length, config.data.val_max_prompt_length if config.data.val_files else 0)
