"""Put a run together: from a checked configuration to the parts the trainer works with.

One public builder for every part that takes more than its constructor. Nothing is computed here: models are loaded and
engines started, and what they do stands in the trainer's loop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rlpr.actor import fp8, parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.algorithm.kl import AdaptiveKL, KLController
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.config import loading
from megatron_rlpr.config.checks import descriptors
from megatron_rlpr.config.schema import AlgorithmConfig, Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer, text_of
from megatron_rlpr.evaluation.held_out import HeldOutEvaluation
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_answers import JudgeAnswers
from megatron_rlpr.evaluation.judge_settings import judge_settings
from megatron_rlpr.evaluation.schedule import ValidationSchedule
from megatron_rlpr.grading.pool import MOST_WORKERS, GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.base_table import BaseProbabilityTable, SharedBaseProbabilities
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.store import forget_after
from megatron_rlpr.rollout.vllm.limits import end_of_sequence_ids, read_model_config
from megatron_rlpr.rollout.writing import RolloutWriter
from megatron_rlpr.run import engines
from megatron_rlpr.run.continuity import check_goes_on, fingerprints
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.run.prompts import (
    check_token_ids,
    prompt_sets,
    prompt_source,
    total_steps,
    training_prompts,
    validation_sets,
)
from megatron_rlpr.run.state import resume_step, stored_state
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.decisions import first_rank_decides, gather_or_raise
from megatron_rlpr.system.descriptors import allow
from megatron_rlpr.system.disk import writing
from megatron_rlpr.system.process_environment import default_threads
from megatron_rlpr.system.shares import Shares, node_shape
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.tracking.collapse_alarm import CollapseAlarm
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.step_metrics import peak_all_ranks_gb
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.types import Prompt, Response
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.hf_export import HfExport
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint
from megatron_rlpr.weights.shape import ModelShape


def build_parts(config: Config) -> RunParts:
    """Start the process groups and build every part. Collective; config has passed `config.checks.check`."""
    threads = config.trainer.threads_per_rank or default_threads()
    torch.set_num_threads(threads)
    config = replace(config, actor=fp8.resolved(config.actor))
    allow(descriptors.needed(config, int(os.environ.get("WORLD_SIZE", "1"))))
    layout = parallel.initialize(config.actor, config.trainer.seed, config.trainer.collective_timeout_s)
    first = layout.rank == 0
    console, clock = Console(config.tracking.progress, layout.rank), Clock()
    folder = RunFolder(Path(config.trainer.runs_dir) / config.trainer.name)
    with writing(folder.path):
        lock = folder.hold() if first else None
    shape = model_shape(HfFolder(config.model.path).config())
    checkpoints = CheckpointStore(folder.checkpoints, shape, config.trainer.keep_last)
    done = resume_step(config.trainer, checkpoints, console)
    if config.trainer.save_freq >= 0 and not config.trainer.val_only:
        first_rank_decides(checkpoints.require_room)

    tokenizer = load_tokenizer(config.model.path)
    decode = partial(text_of, tokenizer)
    tasks = GradeTasks(SpecialTokens.of(tokenizer), config.reward.format_mode)
    held_out = validation_sets(config, tokenizer, tasks)
    prompts = training_prompts(config, tokenizer, tasks, held_out)
    if not (config.rollout.replay or config.trainer.val_only):
        longer = f"{prompts.dropped} longer than {config.data.max_prompt_length} tokens dropped"
        console.message(f"{len(prompts)} training prompts, {longer}")
    source, steps = prompt_source(config, prompts, decode), total_steps(config, prompts)
    end_of_sequence_ids(config.model.path, read_model_config(config.model.path), tokenizer)  # refuses unknown ones
    check_token_ids(config, tokenizer, shape.vocab_size, prompts, held_out)
    prints = fingerprints(config, tokenizer, prompts, held_out)
    if done:
        stored = stored_state(checkpoints, done)
        for change in check_goes_on(config, steps, stored, prints, checkpoints.path(done)):
            console.message(f"changed after step {done}: {change}")
    base_sets = prompt_sets(config, prompts, held_out)
    shares = Shares.of_world()
    tables = base_tables(config, folder, base_sets, prints, shares)

    described = f"{config.model.path}: {shape.architecture}, {shape.num_layers} layers"
    console.message(f"model {described}; {layout.world_size} ranks with {threads} CPU threads each")
    actor = policy(shape, config, layout, clock=clock)
    graders = GraderPool(graders_of_rank(shares))
    rewards = reward_manager(config, tokenizer, graders, tasks)
    base = "none" if config.reward.format_only else config.reward.base_probability
    scorer = GroupScorer(actor, rewards, base, tables, clock, shares)

    if first:
        loading.save_resolved(config, folder.config)
        if not config.trainer.val_only:
            checkpoints.set_aside_after(done)
            forget_after(folder.rollouts, done)
            configs = StepFolders(folder.configs, ".yaml")
            configs.forget_after(done)
            loading.save_resolved(config, configs.path(done))
    resolved = loading.resolved(config)
    tracker = Tracker(config, folder, resolved, done, total_steps=steps, rank=layout.rank, console=console)
    actor.memory.offload()
    rollouts = engines.rollouts(config, console, clock, decode)
    exporter = WeightExporter(actor.chunks, shape, config.weights.bucket_mb, actor.memory.weight)
    slices = engines.shared_slices(config, rollouts, shape, layout, console)
    to_engines = (
        WeightExporter(actor.chunks, shape, config.weights.bucket_mb, actor.memory.weight, engine_size=slices)
        if slices > 1
        else exporter
    )
    hand_over = HandOver(to_engines, rollouts)
    evaluation = HeldOutEvaluation(
        config,
        rollouts,
        scorer,
        graders,
        console,
        tasks,
        judge=judge(config, folder) if first else None,
        folder=folder.answers,
        weights=lambda: hand_over.checksum,
        fingerprints=prints,
        scoring=scoring_settings(config),
        shares=shares,
    )
    sets, alarm = [] if config.rollout.replay else held_out, CollapseAlarm(config.tracking)
    hf = HfExport(folder.hf, exporter, Path(config.model.path), config.trainer.keep_last)
    return RunParts(
        config=config,
        folder=folder,
        tokenizer=tokenizer,
        policy=actor,
        reference=policy(shape, config, layout, trainable=False, clock=clock)
        if config.algorithm.kl_loss_coef
        else None,
        kl_controller=kl_controller(config.algorithm),
        rollouts=rollouts,
        shares=shares,
        # Its thread decodes while this one encodes, which a fast tokenizer does not stand: it has one of its own.
        writer=RolloutWriter(folder.rollouts, partial(text_of, deepcopy(tokenizer))),
        pipeline=engines.pipeline(config, rollouts, source, steps),
        graders=graders,
        scorer=scorer,
        prompt_sets=base_sets,
        prompts=source,
        fingerprints=prints,
        std_filter=StdFilter(config.filter),
        hand_over=hand_over,
        validation=ValidationSchedule(
            config.trainer,
            steps,
            evaluation,
            sets,
            tracker.log_evaluation,
            peak_all_ranks_gb,
            folder.summary,
            config.model.path,
            lambda: alarm.raised,
        ),
        checkpoints=checkpoints,
        hf_export=hf if config.trainer.export_hf else None,
        resume_step=done,
        tracker=tracker,
        collapse_alarm=alarm,
        console=console,
        clock=clock,
        total_steps=steps,
        lock=lock,
    )


def policy(
    shape: ModelShape, config: Config, layout: parallel.Layout, trainable: bool = True, clock: Clock | None = None
) -> MegatronPolicy:
    """A policy with the initial weights, in the actor's layout; without an optimizer it serves as the reference, which
    lies on the host between uses, if anything does.

    clock: is told when its memory moves.
    """
    options = config.actor
    if not trainable and options.offload != "none":
        options = replace(options, offload="all")
    made = MegatronPolicy(shape, options, layout, config.rollout.temperature, trainable, clock)
    if config.model.megatron_checkpoint:
        load_megatron_checkpoint(made.chunks, shape, config.model.megatron_checkpoint)
        made.check_weights(f"{config.model.megatron_checkpoint} cannot be trained")
    else:
        load_here = partial(load_hf_weights, made.chunks, shape, config.model.path)
        gather_or_raise(load_here, dist.group.WORLD, "loading the weights")
    made.weights_changed()
    if not trainable:
        made.memory.offload()
    return made


def kl_controller(algorithm: AlgorithmConfig) -> KLController:
    """What sets the coefficient of a KL in the reward."""
    if algorithm.kl_ctrl_type == "adaptive":
        return AdaptiveKL(algorithm.kl_loss_coef, algorithm.kl_target, algorithm.kl_horizon)
    return KLController(algorithm.kl_loss_coef)


def scoring_settings(config: Config) -> dict[str, Any]:
    """All that the policy's scores of given tokens depend on besides its weights."""
    actor = config.actor
    return {"dtype": actor.dtype, "temperature": config.rollout.temperature, **fp8.scoring_settings(actor)}


def base_tables(
    config: Config, folder: RunFolder, sets: Mapping[str, PromptSet], prints: Mapping[str, str], shares: Shares
) -> dict[str, BaseProbabilityTable]:
    """By prompt set, the base probabilities that the run folder holds, or other runs have computed. Collective: the
    first rank reads them.

    prints: the `fingerprints` of the initial model and the tokenizer.
    """
    if config.reward.base_probability != "initial" or config.reward.format_only:
        return {}
    settings = {
        **{name: prints[name] for name in ("model", "tokenizer")},
        "max_response_length": config.data.max_response_length,
        "compute_score_name": config.reward.compute_score_name,
        **scoring_settings(config),
    }
    place = Path(config.reward.base_probability_cache or folder.shared_base_probabilities)
    shared = SharedBaseProbabilities(place, settings)
    tables = {name: BaseProbabilityTable(settings, folder.base_probabilities(name), shared) for name in sets}

    def read() -> None:
        for name, table in tables.items():
            table.open(sets[name].prompts)

    first_rank_decides(read)
    for table in tables.values():
        table.take_arrays(*shares.from_first(table.arrays() if shares.rank == 0 else None))
    return tables


def judge(config: Config, folder: RunFolder) -> Judge | None:
    """The judge that the environment names, with the answers it gave before; None where the rules alone decide."""
    settings = judge_settings(evaluation=config.evaluation)
    if settings is None:
        return None
    kept = Path(config.evaluation.judge_cache or folder.judge_answers)
    return Judge(settings, JudgeAnswers(kept, settings.asked))


def graders_of_rank(shares: Shares) -> int:
    """Worker processes of this rank's graders: its part of the node's cores."""
    _, ranks_of_node = node_shape(shares.rank, shares.size)
    return max(1, min(len(os.sched_getaffinity(0)) // ranks_of_node, MOST_WORKERS))


def reward_manager(config: Config, tokenizer: Any, graders: GraderPool, tasks: GradeTasks) -> RewardManager:
    """The rewards of a run; what has to be graded is graded in one batch a round, by the ranks that own it."""

    def grade(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
        asked = [tasks.task(prompt, response, "train") for prompt, response in pairs]
        return [result.accuracy for result in graders.grade_many(asked)]

    longest = config.data.longest_prompt
    return RewardManager(config.reward, tokenizer, longest, config.data.max_response_length, grade)
