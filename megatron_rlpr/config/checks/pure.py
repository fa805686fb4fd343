"""Keys that cannot work together, or on so many processes; touches no disk and imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from math import lcm, prod
from pathlib import PurePath

from megatron_rlpr.algorithm.advantage import GROUP_ESTIMATORS, MIXED_REWARD_ESTIMATORS
from megatron_rlpr.algorithm.std_filter import source_multipliers
from megatron_rlpr.config.bounds import shown
from megatron_rlpr.config.checks import pipeline
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import ActorConfig, Config
from megatron_rlpr.data.prompt_templates import TEMPLATES
from megatron_rlpr.reward.shaping import discrete_function, shaping_function

_RAY_ONLY = (
    "rollout.engines",
    "rollout.pipeline",
    "rollout.cpus_per_engine",
    "rollout.engine_timeout_s",
    "rollout.ray_address",
    "weights.transport",
    "weights.delta",
)


def refusals(config: Config, world_size: int) -> Iterator[str]:
    """One sentence for each thing that cannot work on world_size processes."""
    yield from policy_refusals(config, world_size)
    yield from _idle_keys(config)
    yield from _engines(config, world_size)
    yield from _run(config)
    yield from _files(config)
    yield from _batch(config)
    yield from _reward(config)
    yield from _filter(config)
    yield from _algorithm(config)


def policy_refusals(config: Config, world_size: int) -> Iterator[str]:
    """Those that concern a policy alone, without prompts, engines and a run."""
    yield from _ranges(config)
    yield from _layout(config, world_size)
    yield from pipeline.refusals(config.actor)
    yield from _fp8(config.actor)
    yield from _precision_aware(config.actor)


def _ranges(config: Config) -> Iterator[str]:
    for key in all_keys().values():
        value = key.value(config)
        if key.bounds and not key.bounds.hold(value):
            got = value if isinstance(value, int | float) else shown(value)
            yield f"{key.full_name}={got} must be {key.bounds}: {key.meaning}"


def _layout(config: Config, world_size: int) -> Iterator[str]:
    actor = config.actor
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    sizes = {f"actor.{name}": getattr(actor, name) for name in names}
    if actor.context_parallel_size == 1:
        del sizes["actor.context_parallel_size"]
    ranks = prod(sizes.values())
    if world_size % ranks:
        yield (
            f"{world_size} processes cannot be divided into groups of "
            f"{' x '.join(f'{name}={size}' for name, size in sizes.items())} = {ranks}: start a multiple of {ranks} "
            "processes (torchrun --nproc-per-node) or change these sizes"
        )
    # Experts are spread over context-parallel ranks, too: they hold the same layers.
    of_layers = ranks // actor.context_parallel_size
    replicas, expert = world_size // of_layers, actor.expert_model_parallel_size
    if actor.expert_tensor_size != actor.tensor_model_parallel_size:
        names = ("expert_tensor_parallel_size", "expert_model_parallel_size", "pipeline_model_parallel_size")
        named = {f"actor.{name}": getattr(actor, name) for name in names}
        together = prod(named.values())
        if world_size % together:
            yield (
                f"{world_size} processes cannot be divided into groups of "
                f"{' x '.join(f'{name}={size}' for name, size in named.items())} = {together}, which share all "
                f"experts: start a multiple of {lcm(ranks, together)} processes or change these sizes"
            )
    elif replicas % expert:
        yield (
            f"actor.expert_model_parallel_size={expert} does not divide the {replicas} "
            f"{'data-parallel' if ranks == of_layers else 'data-parallel and context-parallel'} ranks of {world_size} "
            f"processes: start a multiple of {lcm(ranks, of_layers * expert)} processes or change it"
        )
    if actor.sequence_parallel and actor.tensor_model_parallel_size == 1:
        yield "actor.sequence_parallel=true shards over tensor-parallel ranks: set actor.tensor_model_parallel_size > 1"


def _idle_keys(config: Config) -> Iterator[str]:
    """Keys that are set although another one leaves them without effect."""
    idle: dict[str, str] = {}
    if config.rollout.placement == "colocated":
        idle |= dict.fromkeys(_RAY_ONLY, "with rollout.placement=colocated: set rollout.placement=ray or remove it")
    else:
        idle["rollout.deal"] = "with rollout.placement=ray, whose engines get prompts as they have room: remove it"
    if not config.data.val_files:
        idle["trainer.test_freq"] = "without data.val_files"
    if not config.tracking.reasoning_gain:
        idle["tracking.collapse_gain_share"] = "without tracking.reasoning_gain=true"
    if config.reward.base_probability != "initial":
        idle["reward.base_probability_cache"] = "without reward.base_probability=initial"
    if not config.reward.gt_tokens_one_more:
        idle["reward.gt_tokens_one_more_adjusted"] = "without reward.gt_tokens_one_more=true"
    if config.filter.mode == "EMA":
        idle["filter.accuracy_lower_bound"] = (
            "with filter.mode=EMA, which sets that bound itself: remove it or set filter.mode=fixed"
        )
    if not config.actor.use_precision_aware_optimizer:
        why = "without actor.use_precision_aware_optimizer=true"
        idle |= dict.fromkeys(("actor.exp_avg_dtype", "actor.exp_avg_sq_dtype"), why)
    if config.actor.lr_decay_style == "constant":
        idle["actor.min_lr"] = "with actor.lr_decay_style=constant: choose linear or cosine"
    actor, fp8 = config.actor, [name for name in all_keys() if name.startswith("actor.fp8_")]
    bf16_layers = ["actor.num_layers_at_start_in_bf16", "actor.num_layers_at_end_in_bf16"]
    if not actor.first_last_layers_bf16:
        idle |= dict.fromkeys(bf16_layers, "without actor.first_last_layers_bf16=true")
    if actor.fp8_recipe != "delayed":
        amax = [name for name in fp8 if "amax" in name]
        idle |= dict.fromkeys(amax, "with another actor.fp8_recipe than delayed")
    if not actor.fp8:
        every = [*fp8, "actor.first_last_layers_bf16", *bf16_layers]
        idle |= dict.fromkeys(every, "without actor.fp8: set it to hybrid or e4m3, or remove the key")
    for name, why in idle.items():
        value = all_keys()[name].value(config)
        if value != all_keys()[name].default:
            yield f"{name}={'true' if value is True else value} has no effect {why}"


def _engines(config: Config, world_size: int) -> Iterator[str]:
    rollout, size = config.rollout, config.rollout.tensor_parallel_size
    if rollout.placement == "colocated" and world_size % size:
        yield f"rollout.tensor_parallel_size={size} does not divide the {world_size} processes: choose a divisor"
    yield from _shared_experts(config, world_size)
    if rollout.placement == "ray" and rollout.sleep == "true":
        yield "rollout.sleep=true with rollout.placement=ray: engines have GPUs of their own there, set it to auto"
    if rollout.placement == "ray" and rollout.replay:
        yield f"rollout.placement=ray with rollout.replay={rollout.replay}: stored rollouts need no engines, remove one"
    if rollout.pipeline and not config.algorithm.importance_cap:
        yield "rollout.pipeline=1 trains on responses of older weights: set algorithm.importance_cap, e.g. 2"
    if config.algorithm.importance_cap and rollout.temperature != 1 and rollout.truncated:
        yield (
            f"algorithm.importance_cap needs the engine's log-probs of all tokens, which it does not give for "
            f"rollout.temperature={rollout.temperature} with top_p or top_k: set rollout.temperature=1, or "
            "rollout.top_p=1 and rollout.top_k=-1"
        )
    if rollout.pipeline and not config.filter.cache_regenerate:
        yield (
            "rollout.pipeline=1 with filter.cache_regenerate=false: carried groups could fill a step whose round is "
            "under way already; set filter.cache_regenerate=true or rollout.pipeline=0"
        )
    if rollout.replay and config.trainer.val_only:
        yield "trainer.val_only=true needs an engine, rollout.replay holds responses to training prompts: remove one"
    if rollout.replay and config.algorithm.adv_estimator == "remax":
        yield "algorithm.adv_estimator=remax needs greedy responses for its baseline, and rollout.replay holds none"


def _shared_experts(config: Config, world_size: int) -> Iterator[str]:
    rollout, size = config.rollout, config.rollout.data_parallel_size
    if size > 1 and rollout.placement == "ray":
        yield f"rollout.data_parallel_size={size} needs rollout.placement=colocated: vLLM has no such engines in Ray"
    elif size > 1 and size * rollout.tensor_parallel_size != world_size:
        yield (
            f"rollout.data_parallel_size={size} x rollout.tensor_parallel_size={rollout.tensor_parallel_size} must be "
            f"all {world_size} processes: vLLM counts the engines that share experts over all of them"
        )
    if size > 1 and not rollout.enable_expert_parallel:
        yield f"rollout.data_parallel_size={size} shares experts alone: set rollout.enable_expert_parallel=true"
    if rollout.enable_expert_parallel and size * rollout.tensor_parallel_size == 1:
        yield (
            "rollout.enable_expert_parallel=true has no effect in an engine of one rank: set "
            "rollout.tensor_parallel_size or rollout.data_parallel_size"
        )


def _run(config: Config) -> Iterator[str]:
    trainer, name, strategies = config.trainer, config.trainer.name, config.evaluation.strategies
    if not name or name in (".", "..") or name != name.strip() or any(c in "/\\:" or not c.isprintable() for c in name):
        yield f"trainer.name={name!r} must be a plain folder name, without path separators: it lies in trainer.runs_dir"
    if not trainer.runs_dir:
        yield "trainer.runs_dir is empty: name the folder that holds all runs, e.g. runs"
    if trainer.val_only and not config.data.val_files:
        yield "trainer.val_only=true has nothing to validate: set data.val_files"
    if trainer.export_hf and trainer.save_freq < 0:
        yield "trainer.export_hf=true writes beside checkpoints, trainer.save_freq=-1 makes none: set it to 0 or more"
    if not strategies or not set(strategies) <= {"greedy", "sampling"}:
        yield f"evaluation.strategies={strategies}: expected a list of 'greedy', 'sampling' or both"


def _files(config: Config) -> Iterator[str]:
    data = config.data
    if not (data.train_files or config.trainer.val_only or config.rollout.replay):
        yield "data.train_files is empty: name at least one parquet file, data.train_files=[train.parquet]"
    for key, files in (("data.train_files", data.train_files), ("data.val_files", data.val_files)):
        for file, count in Counter(map(os.path.normpath, files)).items():
            if count > 1:
                yield f"{key} names {file} more than once"
    for stem, count in Counter(PurePath(file).stem for file in data.val_files).items():
        if count > 1:
            yield f"data.val_files: more than one file is called {stem}, and metrics carry that name: rename one"


def _batch(config: Config) -> Iterator[str]:
    data, batch, mini = config.data, config.data.train_batch_size, config.actor.ppo_mini_batch_size
    if mini and batch % mini:
        yield f"actor.ppo_mini_batch_size={mini} does not divide data.train_batch_size={batch}: choose a divisor or 0"
    budget, response = config.actor.max_tokens_per_micro_batch, data.max_response_length
    longest = {"data.max_prompt_length": data.max_prompt_length}
    if data.val_files and config.evaluation.score_reward:
        longest["data.val_max_prompt_length"] = data.val_max_prompt_length
    for key, prompt in longest.items():
        needed = -(-(prompt + response) // config.actor.token_ranks) * config.actor.token_ranks
        if needed > budget:
            instead = ", lower them or set evaluation.score_reward=false" if "val_" in key else " or lower them"
            yield (
                f"actor.max_tokens_per_micro_batch={budget} cannot hold one sequence of {key} + "
                f"data.max_response_length = {prompt} + {response} tokens: raise it to at least {needed}"
                f"{instead}"
            )


def _reward(config: Config) -> Iterator[str]:
    shaping_function(config.reward.shaping_function_name)  # they refuse a name that they do not know
    discrete_function(config.reward.discrete_function_name)
    wanted = TEMPLATES[config.data.template].format_mode
    if wanted not in (None, config.reward.format_mode):
        tags = "think and answer tags" if wanted == "R1" else "answer tags only"
        yield f"data.template={config.data.template} asks for {tags}: set reward.format_mode={wanted}"


def _fp8(actor: ActorConfig) -> Iterator[str]:
    if not actor.fp8:
        return
    if actor.dtype != "bfloat16":
        yield f"actor.fp8={actor.fp8} needs actor.dtype=bfloat16, got {actor.dtype}"
    if actor.fp8_recipe == "delayed":
        delayed = "actor.fp8_recipe=delayed scales by the values of earlier steps"
        if actor.fp8_scoring == "fp8":
            yield (
                f"{delayed}, and there are none when the base probabilities are made: set actor.fp8_scoring=bf16 or "
                "choose another recipe"
            )
        if actor.fp8_param:
            yield (
                f"{delayed}, so weights stored in FP8 would depend on steps that a checkpoint does not hold: set "
                "actor.fp8_param=false or choose another recipe"
            )
        if actor.first_last_layers_bf16:
            yield (
                f"{delayed}, which Megatron-Core notes for all layers: set actor.first_last_layers_bf16=false or "
                "choose another recipe"
            )
        if actor.virtual_pipeline_model_parallel_size > 1:
            yield (
                f"{delayed}, which a virtual pipeline takes in another order: set "
                "actor.virtual_pipeline_model_parallel_size=1 or choose another recipe"
            )
    if actor.fp8_param and actor.offload == "all":
        yield "actor.offload=all moves plain weights, and actor.fp8_param=true has others: set actor.offload=optimizer"
    if actor.fp8_param and not actor.use_distributed_optimizer:
        yield (
            "actor.fp8_param=true needs an optimizer that casts its fp32 weights to FP8: set "
            "actor.use_distributed_optimizer=true"
        )


def _precision_aware(actor: ActorConfig) -> Iterator[str]:
    if not actor.use_precision_aware_optimizer:
        return
    key = "actor.use_precision_aware_optimizer=true"
    if not actor.use_distributed_optimizer:
        yield f"{key} is a kind of distributed optimizer: set actor.use_distributed_optimizer=true"
    if actor.dtype != "bfloat16":
        yield f"{key} needs weights in bf16, whose fp32 ones it keeps: set actor.dtype=bfloat16 or remove it"
    if actor.fp8:
        yield f"{key} is not supported with actor.fp8={actor.fp8}: remove one of them"


def _filter(config: Config) -> Iterator[str]:
    rules, manager = config.filter, config.reward.reward_manager
    source_multipliers(rules.std_filter_beta_per_data_source)  # refuses what it cannot read
    low, high = rules.accuracy_lower_bound, rules.accuracy_upper_bound
    if low > high:
        yield f"filter.accuracy_lower_bound={low} lies above filter.accuracy_upper_bound={high}: no group could pass"
    if not rules.enabled:
        return
    if rules.mode == "EMA" and rules.ema_start_step >= rules.start_step:
        yield (
            f"filter.ema_start_step={rules.ema_start_step} must come before filter.start_step={rules.start_step}: "
            "the first threshold is made from the steps between them"
        )
    if rules.target == "vr_acc" and manager == "prob" and config.reward.reward_type != "pr+vr":
        yield "filter.target=vr_acc needs graded answers: set reward.reward_manager to mix or naive"
    if rules.target in ("scoreB", "scoreB-scoreA") and manager == "naive":
        yield f"filter.target={rules.target} needs the reference probability: set reward.reward_manager to prob or mix"


def _algorithm(config: Config) -> Iterator[str]:
    algorithm, actor, n = config.algorithm, config.actor, config.rollout.n
    estimator = algorithm.adv_estimator
    if estimator in GROUP_ESTIMATORS and n < 2:
        yield f"rollout.n={n}: algorithm.adv_estimator={estimator} compares responses of a prompt, set rollout.n >= 2"
    if estimator in MIXED_REWARD_ESTIMATORS and config.reward.reward_manager != "mix":
        yield f"algorithm.adv_estimator={estimator} needs probability and graded rewards: set reward.reward_manager=mix"
    if estimator in MIXED_REWARD_ESTIMATORS and config.reward.format_only:
        yield f"algorithm.adv_estimator={estimator} takes no format reward: set reward.format_only=false"
    if algorithm.kl_ctrl_type == "adaptive" and (algorithm.use_kl_loss or not algorithm.kl_loss_coef):
        missing = "algorithm.use_kl_loss=false" if algorithm.use_kl_loss else "algorithm.kl_loss_coef > 0"
        yield f"algorithm.kl_ctrl_type=adaptive needs a KL in the reward: set {missing}, or kl_ctrl_type=fixed"
    if actor.min_lr > actor.lr:
        yield f"actor.min_lr={actor.min_lr} is above the peak learning rate actor.lr={actor.lr}"
