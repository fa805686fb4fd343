"""What this machine must have: the files and folders that the keys name, CUDA, Transformer Engine, memory, a judge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from megatron_rlpr.config.schema import Config
from megatron_rlpr.evaluation.judge_settings import judge_settings
from megatron_rlpr.tracking import wandb_sink


def refusals(config: Config, world_size: int) -> Iterator[str]:
    """One sentence for each thing that is missing here, for a run of world_size processes."""
    runs = Path(config.trainer.runs_dir)
    if runs.exists() and not runs.is_dir():
        yield f"trainer.runs_dir={runs} is a file, not a folder"
    yield from _folder_of_runs("reward.base_probability_cache", config.reward.base_probability_cache)
    if config.data.val_files:
        yield from _judge(config, world_size)
    if wandb_sink.wanted(config.tracking.wandb):
        wandb_sink.check(config.tracking.wandb_project)
    training = [] if config.trainer.val_only else config.data.train_files  # a validation reads none of them
    for key, files in (("data.train_files", training), ("data.val_files", config.data.val_files)):
        for file in files:
            if not Path(file).is_file():
                yield f"{key}: there is no file {file} (python -m tools.prepare_data makes data sets)"
    if config.rollout.replay:
        yield from _stored_rollouts(config.rollout.replay, runs / config.trainer.name)
    yield from policy_refusals(config)
    yield from _engine_memory(config)


def policy_refusals(config: Config) -> Iterator[str]:
    """Those that concern a policy alone, without prompts, engines and a run."""
    yield from _converted(config)
    yield from _accelerator(config)


def _converted(config: Config) -> Iterator[str]:
    converted = config.model.megatron_checkpoint
    if converted and not Path(converted).is_dir():
        yield (
            f"model.megatron_checkpoint: there is no folder {converted}; make it with "
            "checkpoint_conversion/hf_to_megatron.py, or leave the key empty to read the weights from model.path"
        )


def _judge(config: Config, world_size: int) -> Iterator[str]:
    """judge_settings itself refuses an environment that names a judge it cannot ask."""
    if judge_settings() is None:
        return
    limit, patience = config.evaluation.judge_time_limit_s, config.trainer.collective_timeout_s
    if world_size > 1 and limit >= patience:
        yield (
            f"evaluation.judge_time_limit_s={limit} must be less than trainer.collective_timeout_s={patience}: the "
            "other ranks wait while the first one judges"
        )
    yield from _folder_of_runs("evaluation.judge_cache", config.evaluation.judge_cache)


def _folder_of_runs(key: str, path: str) -> Iterator[str]:
    """A folder that several runs may share, which this one writes to; empty: there is none."""
    folder = Path(path)
    if path and folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        yield f"{key}={folder} is no folder that this run can write to: choose another"


def _stored_rollouts(replay: str, run_folder: Path) -> Iterator[str]:
    if not Path(replay).is_dir():
        yield (
            f"rollout.replay: there is no folder {replay}; it is written by a run with tracking.save_rollouts=true, as "
            "runs/<name>/rollouts"
        )
    if not any(Path(replay).glob("*.parquet")):
        yield f"rollout.replay: the folder {replay} holds no parquet file with stored rollouts"
    if Path(os.path.realpath(replay)).is_relative_to(os.path.realpath(run_folder)):
        yield f"rollout.replay={replay} lies in this run's own folder, which it writes to: choose another trainer.name"


def _engine_memory(config: Config) -> Iterator[str]:
    """Key/value caches of this machine's engines; those in a running Ray cluster may be anywhere."""
    import torch

    rollout, data = config.rollout, config.data
    in_cluster = rollout.placement == "ray" and (rollout.ray_address or os.environ.get("RAY_ADDRESS"))
    if in_cluster or (rollout.replay and not data.val_files) or torch.cuda.is_available():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    caches = rollout.engines * rollout.tensor_parallel_size if rollout.placement == "ray" else ranks
    memory = psutil.virtual_memory().total / 2**30
    if caches * rollout.kv_cache_gb > memory:
        yield (
            f"rollout.kv_cache_gb={rollout.kv_cache_gb:g} for each of {caches} engine processes is more than this "
            f"machine's memory of {memory:.0f} GiB: lower it"
        )


def _accelerator(config: Config) -> Iterator[str]:
    fp8, precision_aware = config.actor.fp8, config.actor.use_precision_aware_optimizer
    if not (fp8 or precision_aware):
        return
    import torch

    from megatron_rlpr.actor.model import layer_kind

    if precision_aware and not layer_kind.transformer_engine_is_here():
        yield (
            "actor.use_precision_aware_optimizer=true needs Transformer Engine's Adam: pip install "
            "'megatron-rlpr[cuda]', or set it to false"
        )
    if not fp8:
        return
    if not torch.cuda.is_available():
        yield f"actor.fp8={fp8} needs a CUDA GPU, and none is visible: set actor.fp8= (empty)"
    if not layer_kind.transformer_engine_is_here():
        yield f"actor.fp8={fp8} needs Transformer Engine: pip install 'megatron-rlpr[cuda]', or set actor.fp8= (empty)"
    from megatron_rlpr.actor.fp8 import RECIPES, resolved

    recipe = resolved(config.actor).fp8_recipe
    if refusal := RECIPES[recipe].refusal():
        others = [name for name, other in RECIPES.items() if not other.refusal()]
        instead = f"choose {' or '.join(others)}" if others else "set actor.fp8= (empty)"
        yield f"actor.fp8_recipe={recipe} {refusal}: {instead}"
