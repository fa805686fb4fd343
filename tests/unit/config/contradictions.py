"""Which keys cannot be combined, written down once more, so that the checks are not their own judge."""

from __future__ import annotations

import re

import psutil
from tiny_run import KEY_VALUE_HEADS, LAYERS, POSITIONS

from megatron_rlpr.config.schema import Config

DEFAULTS = Config()
MEMORY_GIB = psutil.virtual_memory().total / 2**30


def contradictions(config: Config, world: int) -> list[str]:
    """Why this cannot run on `world` processes of a machine without a GPU; empty when nothing speaks against it."""
    data, rollout, reward, rules = config.data, config.rollout, config.reward, config.filter
    algorithm, actor, trainer = config.algorithm, config.actor, config.trainer
    tensor, pipeline = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    together = actor.context_parallel_size * (tensor if actor.sequence_parallel else 1)  # tokens are padded to these
    estimator, manager, ray = algorithm.adv_estimator, reward.reward_manager, rollout.placement == "ray"
    mixed = estimator in ("prnostd_vrstd", "prstd_vrstd")
    longest = max(data.max_prompt_length, data.val_max_prompt_length if data.val_files else 0)
    scored_prompt = longest if config.evaluation.score_reward else data.max_prompt_length
    caches = rollout.engines * rollout.tensor_parallel_size if ray else 1
    engines = bool(data.val_files) or not rollout.replay
    rounds, layout = actor.virtual_pipeline_model_parallel_size, actor.pipeline_model_parallel_layout
    # The layouts that are tried begin with a part of one layer and end with one that has all others.
    sizes = {1, LAYERS - 1} if layout else {LAYERS // (pipeline * rounds) or 1}
    unit, sharing = actor.recompute_num_layers, rollout.data_parallel_size * rollout.tensor_parallel_size
    reasons = {
        "ranks": world % (tensor * pipeline * actor.context_parallel_size) != 0,
        "heads": KEY_VALUE_HEADS % tensor != 0 or KEY_VALUE_HEADS % rollout.tensor_parallel_size != 0,
        "layers": not layout and LAYERS % (pipeline * rounds) != 0,
        "parts": bool(layout) and layout.count("|") + 1 != pipeline * rounds,
        "placed": bool(layout) and layout.count("t") != LAYERS,
        "rounds": pipeline == 1 and (rounds > 1 or bool(layout)),
        "sequence": actor.sequence_parallel and tensor == 1,
        "experts": actor.expert_model_parallel_size != 1,
        "engine ranks": not ray and world % rollout.tensor_parallel_size != 0,
        "idle": not ray
        and (
            any(getattr(rollout, k) != getattr(DEFAULTS.rollout, k) for k in ("engines", "pipeline", "cpus_per_engine"))
            or rollout.engine_timeout_s != DEFAULTS.rollout.engine_timeout_s
            or rollout.ray_address != ""
            or config.weights.transport != "auto"
            or config.weights.delta
        ),
        "no GPUs to share": ray and (rollout.sleep == "true" or rollout.deal != "auto"),
        "shared experts": rollout.data_parallel_size > 1
        and (ray or not rollout.enable_expert_parallel or sharing != world),
        "experts of engines": rollout.enable_expert_parallel and (engines or sharing == 1),
        "idle frequency": trainer.test_freq != DEFAULTS.trainer.test_freq and not data.val_files,
        "idle cap": reward.gt_tokens_one_more_adjusted and not reward.gt_tokens_one_more,
        "idle share": not config.tracking.reasoning_gain
        and config.tracking.collapse_gain_share != DEFAULTS.tracking.collapse_gain_share,
        "idle bound": rules.mode == "EMA" and rules.accuracy_lower_bound != 0,
        "idle rate": actor.lr_decay_style == "constant" and actor.min_lr != 0,
        "store and engines": ray and bool(rollout.replay),
        "stale": rollout.pipeline == 1 and not algorithm.importance_cap,
        "carried": rollout.pipeline == 1 and not rules.cache_regenerate,
        "nothing to answer": bool(rollout.replay) and (trainer.val_only or estimator == "remax"),
        "nothing to validate": trainer.val_only and not data.val_files,
        "nothing to train on": not (data.train_files or trainer.val_only or rollout.replay),
        "export": trainer.export_hf and trainer.save_freq < 0,
        "strategies": not config.evaluation.strategies
        or any(name not in ("greedy", "sampling") for name in config.evaluation.strategies),
        "name": not re.fullmatch(r"[^/\\:\s]([^/\\:]*[^/\\:\s])?", trainer.name) or trainer.name in (".", ".."),
        "mini-batch": actor.ppo_mini_batch_size > 0 and data.train_batch_size % actor.ppo_mini_batch_size != 0,
        "budget": scored_prompt + data.max_response_length > actor.max_tokens_per_micro_batch // together * together,
        "positions": longest + data.max_response_length > POSITIONS,
        "template": data.template != "as_is"
        and reward.format_mode != ("R1" if data.template == "R1" else "R1_nothink"),
        "bounds": rules.accuracy_lower_bound > rules.accuracy_upper_bound,
        "collected": rules.enabled and rules.mode == "EMA" and rules.ema_start_step >= rules.start_step,
        "ungraded": rules.enabled and rules.target == "vr_acc" and manager == "prob" and reward.reward_type == "pr",
        "unscored": rules.enabled and rules.target.startswith("scoreB") and manager == "naive",
        "group of one": rollout.n < 2 and estimator in ("grpo", "grpo_nostd", "rloo", "prnostd_vrstd", "prstd_vrstd"),
        "mixed": mixed and (manager != "mix" or reward.format_only),
        "adaptive": algorithm.kl_ctrl_type == "adaptive" and (algorithm.use_kl_loss or algorithm.kl_loss_coef == 0),
        "rates": actor.min_lr > actor.lr,
        "idle format": not actor.fp8
        and any(
            value != getattr(DEFAULTS.actor, name)
            for name, value in vars(actor).items()
            if name.startswith(("fp8_", "first_last_layers", "num_layers_at_"))
        ),
        "GPU for engines": engines and (rollout.quantization != "none" or rollout.kv_cache_dtype != "auto"),
        "GPU": bool(actor.fp8),
        "memory": engines and not rollout.ray_address and caches * rollout.kv_cache_gb > MEMORY_GIB,
        "cache": engines and rollout.kv_cache_gb * 2**30 < 64 * 4 * LAYERS * (longest + data.max_response_length),
        "recompute": actor.recompute_granularity == "full"
        and (any(size % unit for size in sizes) if actor.recompute_method == "uniform" else unit > max(sizes)),
    }
    return [reason for reason, holds in reasons.items() if holds]
