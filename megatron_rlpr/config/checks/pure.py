"""Combinations of keys that cannot work, refused before any process group starts: one line each, with the fix."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from megatron_rlpr.algorithm.std_filter import source_multipliers
from megatron_rlpr.config import bounds as config_bounds
from megatron_rlpr.config.checks import model as config_model_checks
from megatron_rlpr.config.checks import rollout as config_rollout_checks
from megatron_rlpr.config.schema import Config
from megatron_rlpr.evaluation.judge import judge_settings
from megatron_rlpr.reward.shaping import discrete_function, shaping_function
from megatron_rlpr.types import UserError

GROUP_ESTIMATORS = ("grpo", "grpo_nostd", "prnostd_vrstd", "prstd_vrstd", "rloo")
MIXED_ESTIMATORS = ("prnostd_vrstd", "prstd_vrstd")


def check(config: Config, world_size: int) -> None:
    """Raise UserError for the first thing in config that cannot work on world_size processes.

    Looks at the configuration, at the files it names and at whether CUDA and Transformer Engine are here; starts
    nothing and changes nothing.
    """
    config_bounds.check(config)
    _check_layout(config, world_size)
    config_rollout_checks.check(config, world_size)
    _check_run(config)
    _check_files(config)
    _check_batch(config)
    _check_reward(config)
    _check_filter(config)
    _check_algorithm(config)
    _check_optimizer(config)
    _check_precision(config)
    config_model_checks.check(config)


def _check_layout(config: Config, world_size: int) -> None:
    tensor, pipeline = config.actor.tensor_model_parallel_size, config.actor.pipeline_model_parallel_size
    if config.actor.context_parallel_size != 1:
        raise UserError(
            f"actor.context_parallel_size={config.actor.context_parallel_size}: context parallelism is not supported: "
            "set it to 1 and use actor.sequence_parallel=true or a smaller actor.max_tokens_per_micro_batch"
        )
    if world_size % (tensor * pipeline):
        raise UserError(
            f"{world_size} processes cannot be divided into groups of actor.tensor_model_parallel_size={tensor} x "
            f"actor.pipeline_model_parallel_size={pipeline} = {tensor * pipeline}: start a multiple of "
            f"{tensor * pipeline} processes (torchrun --nproc-per-node) or change the two sizes"
        )
    replicas, expert = world_size // (tensor * pipeline), config.actor.expert_model_parallel_size
    if replicas % expert:
        raise UserError(
            f"actor.expert_model_parallel_size={expert} does not divide the {replicas} data-parallel ranks of "
            f"{world_size} processes: start a multiple of {tensor * pipeline * expert} processes or change it"
        )
    if config.actor.sequence_parallel and tensor == 1:
        raise UserError(
            "actor.sequence_parallel=true needs actor.tensor_model_parallel_size > 1: it shards activations over the "
            "tensor-parallel ranks"
        )


def _check_run(config: Config) -> None:
    name = config.trainer.name
    if not name or name in (".", "..") or name != name.strip() or any(c in "/\\:" or not c.isprintable() for c in name):
        raise UserError(
            f"trainer.name={name!r} must be a plain folder name, without path separators (it lies in trainer.runs_dir)"
        )
    if not config.trainer.runs_dir:
        raise UserError("trainer.runs_dir is empty: name the folder that holds all runs, e.g. runs")
    runs = Path(config.trainer.runs_dir)
    if runs.exists() and not runs.is_dir():
        raise UserError(f"trainer.runs_dir={config.trainer.runs_dir} is a file, not a folder")
    if config.trainer.val_only and not config.data.val_files:
        raise UserError("trainer.val_only=true has nothing to validate: set data.val_files")
    if config.trainer.test_freq and not config.data.val_files:
        raise UserError(f"trainer.test_freq={config.trainer.test_freq} has no effect without data.val_files")
    if config.trainer.export_hf and config.trainer.save_freq < 0:
        raise UserError(
            "trainer.export_hf=true writes beside checkpoints, and trainer.save_freq=-1 makes none: set it to 0 or more"
        )
    unknown = [strategy for strategy in config.evaluation.strategies if strategy not in ("greedy", "sampling")]
    if unknown or not config.evaluation.strategies:
        raise UserError(
            f"evaluation.strategies={config.evaluation.strategies}: expected a list of 'greedy', 'sampling' or both"
        )
    if config.data.val_files:
        judge_settings()  # of the environment


def _check_files(config: Config) -> None:
    if not (config.data.train_files or config.trainer.val_only or config.rollout.replay):
        raise UserError("data.train_files is empty: name at least one parquet file, data.train_files=[train.parquet]")
    for key, files in (("data.train_files", config.data.train_files), ("data.val_files", config.data.val_files)):
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{key}: there is no file {file} (tools/prepare_data.py makes data sets)")
        if len(set(files)) < len(files):
            raise UserError(f"{key} names {next(file for file in files if files.count(file) > 1)} more than once")
    names = [Path(file).stem for file in config.data.val_files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"data.val_files: more than one file is called {twice}; metrics and summary carry that name, rename one of "
            "them"
        )
    _check_replay(config)
    converted = config.model.megatron_checkpoint
    if converted and not Path(converted).is_dir():
        raise UserError(
            f"model.megatron_checkpoint: there is no folder {converted}; make it with "
            "checkpoint_conversion/hf_to_megatron.py, or leave the key empty to read the weights from model.path"
        )


def _check_replay(config: Config) -> None:
    replay = config.rollout.replay
    if replay and not Path(replay).is_dir():
        raise UserError(
            f"rollout.replay: there is no folder {replay}; it is written by a run with tracking.save_rollouts=true, as "
            "runs/<name>/rollouts"
        )
    if replay and not any(Path(replay).glob("*.parquet")):
        raise UserError(f"rollout.replay: the folder {replay} holds no parquet file with stored rollouts")
    if replay and Path(replay).resolve().is_relative_to(
        (Path(config.trainer.runs_dir) / config.trainer.name).resolve()
    ):
        raise UserError(
            f"rollout.replay={replay} lies in this run's own folder, which the run writes to: choose another "
            "trainer.name"
        )
    if replay and config.trainer.val_only:
        raise UserError(
            "trainer.val_only=true with rollout.replay: stored rollouts are of training prompts, validation needs an "
            "engine"
        )
    if replay and config.algorithm.adv_estimator == "remax":
        raise UserError(
            "algorithm.adv_estimator=remax with rollout.replay: its baseline is the reward of a greedy response, and "
            "none is stored"
        )


def _check_batch(config: Config) -> None:
    batch, mini = config.data.train_batch_size, config.actor.ppo_mini_batch_size
    if mini and batch % mini:
        raise UserError(
            f"actor.ppo_mini_batch_size={mini} does not divide data.train_batch_size={batch}: choose a divisor, or 0 "
            "for the whole batch"
        )
    budget, response = config.actor.max_tokens_per_micro_batch, config.data.max_response_length
    longest = config.data.max_prompt_length + response
    if longest > budget:
        raise UserError(
            f"actor.max_tokens_per_micro_batch={budget} cannot hold one sequence of data.max_prompt_length + "
            f"data.max_response_length = {config.data.max_prompt_length} + {response} = {longest} tokens: raise it to "
            f"at least {longest}"
        )
    longest = config.data.val_max_prompt_length + response
    if config.data.val_files and config.evaluation.score_reward and longest > budget:
        raise UserError(
            f"actor.max_tokens_per_micro_batch={budget} cannot hold one validation sequence of "
            f"data.val_max_prompt_length + data.max_response_length = {config.data.val_max_prompt_length} + {response} "
            f"= {longest} tokens: raise it to at least {longest}, lower data.val_max_prompt_length or set "
            "evaluation.score_reward=false"
        )


def _check_reward(config: Config) -> None:
    reward = config.reward
    shaping_function(reward.shaping_function_name)
    discrete_function(reward.discrete_function_name)
    if config.data.prompt_rewrite == "llama_gemma" and reward.format_mode != "R1_nothink":
        raise UserError(
            f"data.prompt_rewrite=llama_gemma asks for answer tags only, reward.format_mode={reward.format_mode} wants "
            "think tags too: set reward.format_mode=R1_nothink"
        )
    if reward.gt_tokens_one_more_adjusted and not reward.gt_tokens_one_more:
        raise UserError("reward.gt_tokens_one_more_adjusted=true has no effect without reward.gt_tokens_one_more=true")


def _check_filter(config: Config) -> None:
    rules = config.filter
    source_multipliers(rules.std_filter_beta_per_data_source)
    if rules.accuracy_lower_bound > rules.accuracy_upper_bound:
        raise UserError(
            f"filter.accuracy_lower_bound={rules.accuracy_lower_bound} lies above "
            f"filter.accuracy_upper_bound={rules.accuracy_upper_bound}: no group could pass"
        )
    if rules.mode == "EMA" and rules.accuracy_lower_bound:
        raise UserError(
            f"filter.accuracy_lower_bound={rules.accuracy_lower_bound} has no effect with filter.mode=EMA, which sets "
            "that bound itself: remove it or set filter.mode=fixed"
        )
    if rules.enabled and rules.mode == "EMA" and rules.ema_start_step >= rules.start_step:
        raise UserError(
            f"filter.ema_start_step={rules.ema_start_step} must come before filter.start_step={rules.start_step}: "
            "the first threshold is made from the steps between them"
        )
    graded = config.reward.reward_manager != "prob" or config.reward.reward_type == "pr+vr"
    if rules.enabled and rules.target == "vr_acc" and not graded:
        raise UserError("filter.target=vr_acc needs graded answers: set reward.reward_manager to mix or naive")
    if rules.enabled and rules.target in ("scoreB", "scoreB-scoreA") and config.reward.reward_manager == "naive":
        raise UserError(
            f"filter.target={rules.target} needs the reference probability: set reward.reward_manager to prob or mix"
        )


def _check_algorithm(config: Config) -> None:
    algorithm = config.algorithm
    estimator = algorithm.adv_estimator
    if estimator in GROUP_ESTIMATORS and config.rollout.n < 2:
        raise UserError(
            f"rollout.n={config.rollout.n}: algorithm.adv_estimator={estimator} compares the responses of a prompt, it "
            "needs rollout.n >= 2"
        )
    if estimator in MIXED_ESTIMATORS and config.reward.reward_manager != "mix":
        raise UserError(
            f"algorithm.adv_estimator={estimator} combines probability and graded rewards: set "
            "reward.reward_manager=mix"
        )
    adaptive = algorithm.kl_ctrl_type == "adaptive"
    if adaptive and (algorithm.use_kl_loss or not algorithm.kl_loss_coef):
        missing = "algorithm.use_kl_loss=false" if algorithm.use_kl_loss else "algorithm.kl_loss_coef > 0"
        raise UserError(
            f"algorithm.kl_ctrl_type=adaptive has no effect without a KL in the reward: set {missing}, or "
            "kl_ctrl_type=fixed"
        )
    if config.actor.min_lr > config.actor.lr:
        raise UserError(
            f"actor.min_lr={config.actor.min_lr} is above the peak learning rate actor.lr={config.actor.lr}"
        )
    if config.actor.min_lr and config.actor.lr_decay_style == "constant":
        raise UserError(
            f"actor.min_lr={config.actor.min_lr} has no effect with actor.lr_decay_style=constant: choose linear or "
            "cosine"
        )


def _check_optimizer(config: Config) -> None:
    if not config.actor.use_distributed_optimizer:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "actor.use_distributed_optimizer=true needs a CUDA GPU, and none is visible: Megatron-Core cannot save its "
            "state without; set it to false"
        )


def _check_precision(config: Config) -> None:
    actor = config.actor
    if not actor.fp8:
        return
    if actor.dtype != "bfloat16":
        raise UserError(f"actor.fp8={actor.fp8} needs actor.dtype=bfloat16, got {actor.dtype}")
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"actor.fp8={actor.fp8} needs a CUDA GPU, and none is visible: set actor.fp8= (empty)")
    if importlib.util.find_spec("transformer_engine") is None:
        raise UserError(
            f"actor.fp8={actor.fp8} needs Transformer Engine: pip install 'megatron-rlpr[cuda]', or set actor.fp8= "
            "(empty)"
        )
