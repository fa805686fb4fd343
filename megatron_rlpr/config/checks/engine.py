"""How the engines of a run are made, and whether the model can run in them."""

from __future__ import annotations

import os

import torch

from megatron_rlpr.config.schema import Config
from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.vllm.limits import check_engine_fits, read_model_config
from megatron_rlpr.system.process_environment import default_threads


def engine_settings(config: Config) -> EngineSettings:
    """The settings of every engine of a run, wherever they are."""
    rollout, on_gpu = config.rollout, torch.cuda.is_available()
    here = config.trainer.threads_per_rank or default_threads()
    return EngineSettings(
        model_path=os.path.abspath(config.model.path),
        dtype=config.actor.dtype if rollout.dtype == "auto" else rollout.dtype,
        max_model_len=config.data.longest_prompt + config.data.max_response_length,
        max_num_seqs=rollout.max_num_seqs or (512 if on_gpu else 64),
        kv_cache_gb=rollout.kv_cache_gb,
        gpu_memory_utilization=rollout.memory_share(on_gpu),
        enforce_eager=rollout.enforce_eager == "true" or (rollout.enforce_eager == "auto" and not on_gpu),
        tensor_parallel_size=rollout.tensor_parallel_size,
        quantization=rollout.quantization,
        kv_cache_dtype=rollout.kv_cache_dtype,
        sleep=rollout.sleeps(on_gpu),
        load_format="dummy",  # a run's first hand-over comes before its first request
        data_parallel_size=rollout.data_parallel_size,
        enable_expert_parallel=rollout.enable_expert_parallel,
        seed=config.trainer.seed,
        threads=rollout.cpus_per_engine if rollout.placement == "ray" else here,
        raw_log_probs=rollout.temperature == 1 and rollout.truncated,
    )


def check(config: Config) -> None:
    """UserError when an engine cannot run the model, unless stored rollouts replace it and nothing is validated."""
    if config.data.val_files or not config.rollout.replay:
        model = read_model_config(config.model.path)
        check_engine_fits(model, engine_settings(config), on_cpu=not torch.cuda.is_available())
