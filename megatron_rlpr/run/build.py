"""Put a run together: from a checked configuration to the parts the trainer works with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.algorithm.kl import AdaptiveKL, FixedKL, KLController
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.config import loading as config_loading
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet, load_prompts, samples_per_prompt
from megatron_rlpr.data.prompt_rewrite import prompt_rewrite
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.data.sampler import PromptSampler
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.evaluation.held_out import HeldOutEvaluation, ValidationSet
from megatron_rlpr.evaluation.judge import Judge, judge_settings
from megatron_rlpr.evaluation.schedule import ValidationSchedule
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.base_probability import BaseProbabilityTable
from megatron_rlpr.reward.manager import Grade, RewardManager
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.store import forget_after, read_rollouts, stored_steps
from megatron_rlpr.run import engines
from megatron_rlpr.run import lock as run_lock
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.process_environment import default_threads
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.types import Prompt, Response, UserError
from megatron_rlpr.weights.architectures import model_shape, read_hf_config
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.hf_export import HfExport
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint
from megatron_rlpr.weights.shape import ModelShape


def build_parts(config: Config) -> RunParts:
    """Start the process groups and build every part. Collective; config has passed `config_checks.check`."""
    threads = config.trainer.threads_per_rank or default_threads()
    torch.set_num_threads(threads)
    folder = Path(config.trainer.runs_dir) / config.trainer.name
    shape = model_shape(read_hf_config(config.model.path))
    checkpoints = CheckpointStore(folder / "checkpoints", shape, config.trainer.keep_last)
    resume_step = _resume_step(config, checkpoints)
    layout = parallel.initialize(config.actor, config.trainer.seed, config.trainer.collective_timeout_s)
    console = Console(config.tracking.progress, layout.rank)
    clock = Clock()
    tokenizer = load_tokenizer(config.model.path)
    prompts = _training_prompts(config, tokenizer, console)
    val_prompts = _validation_prompts(config, tokenizer)
    graders = GraderPool()
    grade_tasks = GradeTasks(SpecialTokens.of(tokenizer), config.reward.format_mode)

    described = f"{shape.architecture}, {shape.num_layers} layers"
    console.message(
        f"model {config.model.path}: {described}; {layout.world_size} ranks with {threads} CPU threads each"
    )
    policy = MegatronPolicy(shape, config.actor, layout, config.rollout.temperature)
    _load_initial_weights(policy, shape, config)
    rewards = RewardManager(
        config.reward,
        tokenizer,
        config.data.longest_prompt,
        config.data.max_response_length,
        _grade(grade_tasks, graders),
    )
    scorer = GroupScorer(
        policy, rewards, "none" if config.reward.format_only else config.reward.base_probability, clock
    )
    total_steps = _total_steps(config, prompts)
    lock = run_lock.hold(folder) if layout.rank == 0 else None
    if layout.rank == 0:
        config_loading.save_resolved(config, folder / "config.yaml")
        if not config.trainer.val_only:
            forget_after(folder / "rollouts", resume_step)
    tables = _BaseTables(config, folder, scorer, console, ["train", *map(_table_name, val_prompts)])
    tracker = Tracker(
        config,
        folder,
        config_loading.resolved(config),
        resume_step,
        total_steps=total_steps,
        rank=layout.rank,
        console=console,
    )
    source = PromptSource(
        prompts,
        PromptSampler(len(prompts), _batch_size(config, prompts), config.data.shuffle, config.data.seed),
        None if config.trainer.val_only else tables.of("train", prompts),
        config.filter.cache_regenerate,
    )
    scored = config.evaluation.score_reward
    sets = [
        ValidationSet(name, found, samples_per_prompt(name), tables.of(_table_name(name), found) if scored else None)
        for name, found in val_prompts.items()
    ]
    rollouts = engines.rollouts(config, console)
    evaluation = HeldOutEvaluation(config, rollouts, scorer, graders, console, grade_tasks, _judge(layout.rank))
    exporter = WeightExporter(policy.model, shape, config.weights.bucket_mb)
    return RunParts(
        config=config,
        folder=folder,
        tokenizer=tokenizer,
        policy=policy,
        reference=_reference_policy(shape, config, layout),
        kl_controller=_kl_controller(config),
        rollouts=rollouts,
        pipeline=engines.pipeline(config, rollouts, source, total_steps),
        scorer=scorer,
        prompts=source,
        std_filter=StdFilter(config.filter),
        hand_over=HandOver(exporter, rollouts),
        validation=ValidationSchedule(
            config.trainer,
            total_steps,
            evaluation,
            [] if config.rollout.replay else sets,
            tracker,
            folder,
            config.model.path,
        ),
        checkpoints=checkpoints,
        hf_export=_hf_export(config, folder, exporter),
        resume_step=resume_step,
        tracker=tracker,
        console=console,
        clock=clock,
        total_steps=total_steps,
        lock=lock,
    )


class _BaseTables:
    """The base probabilities of the initial policy, made once per prompt set and kept in the run folder.

    Those that are there already are read, and refused if they were made otherwise, before any work.
    """

    def __init__(
        self, config: Config, folder: Path, scorer: GroupScorer, console: Console, names: Sequence[str]
    ) -> None:
        self._wanted = config.reward.base_probability == "initial" and not config.reward.format_only
        self._settings = {
            "model": config.model.path,
            "megatron_checkpoint": config.model.megatron_checkpoint,
            "dtype": config.actor.dtype,
            "temperature": config.rollout.temperature,
            "compute_score_name": config.reward.compute_score_name,
        }
        self._folder = folder
        self._scorer = scorer
        self._console = console
        stored = [name for name in names if self._wanted and self._path(name).exists()]
        self._stored = {name: BaseProbabilityTable.load(self._path(name), self._settings) for name in stored}

    def of(self, name: str, prompts: PromptSet) -> BaseProbabilityTable | None:
        """The table of a prompt set, completed by the policy as it is now (call before any update or resume)."""
        if not self._wanted:
            return None
        table = self._stored.get(name) or BaseProbabilityTable(self._settings)
        with self._console.phase(f"base probabilities of {name}") as progress:
            added = self._scorer.complete(table, prompts.prompts, progress.advance)
        if added and dist.get_rank() == 0:
            table.save(self._path(name))
        return table

    def _path(self, name: str) -> Path:
        return self._folder / f"base_probability_{name}.json"


def _table_name(validation_set: str) -> str:
    return f"val_{validation_set}"


def _training_prompts(config: Config, tokenizer: Any, console: Console) -> PromptSet:
    if config.rollout.replay:
        steps = stored_steps(config.rollout.replay)
        found = {
            group.prompt.index: group.prompt for step in steps for group in read_rollouts(config.rollout.replay, step)
        }
        return PromptSet(tuple(found.values()), 0)
    files = config.data.train_files or config.data.val_files
    rewrite = prompt_rewrite(config.data.prompt_rewrite, config.reward.format_mode)
    prompts = load_prompts(files, tokenizer, config.data.max_prompt_length, rewrite=rewrite)
    console.message(
        f"{len(prompts)} training prompts, {prompts.dropped} longer than {config.data.max_prompt_length} tokens dropped"
    )
    return prompts


def _validation_prompts(config: Config, tokenizer: Any) -> dict[str, PromptSet]:
    rewrite = prompt_rewrite(config.data.prompt_rewrite, config.reward.format_mode)
    limit = config.evaluation.max_prompts
    return {
        Path(file).stem: load_prompts(
            [file], tokenizer, config.data.val_max_prompt_length, overlong="refuse", rewrite=rewrite, limit=limit
        )
        for file in config.data.val_files
    }


def _load_initial_weights(policy: MegatronPolicy, shape: ModelShape, config: Config) -> None:
    if config.model.megatron_checkpoint:
        load_megatron_checkpoint(policy.model, shape, config.model.megatron_checkpoint)
    else:
        load_hf_weights(policy.model, shape, config.model.path)
    policy.weights_changed()


def _reference_policy(shape: ModelShape, config: Config, layout: parallel.Layout) -> MegatronPolicy | None:
    """The initial policy, in the actor's layout; loaded only when the KL to it counts."""
    if config.algorithm.kl_loss_coef == 0:
        return None
    reference = MegatronPolicy(shape, config.actor, layout, config.rollout.temperature, trainable=False)
    _load_initial_weights(reference, shape, config)
    return reference


def _hf_export(config: Config, folder: Path, exporter: WeightExporter) -> HfExport | None:
    if not config.trainer.export_hf:
        return None
    return HfExport(folder / "hf", exporter, Path(config.model.path), config.trainer.keep_last)


def _kl_controller(config: Config) -> KLController:
    settings = config.algorithm
    if settings.kl_ctrl_type == "adaptive":
        return AdaptiveKL(settings.kl_loss_coef, settings.kl_target, settings.kl_horizon)
    return FixedKL(settings.kl_loss_coef)


def _grade(tasks: GradeTasks, graders: GraderPool) -> Grade:
    def grade(prompt: Prompt, response: Response) -> float:
        return graders.grade_many([tasks.task(prompt, response, "train")])[0].accuracy

    return grade


def _judge(rank: int) -> Judge | None:
    """The validation's judge, if the environment names one; the first rank grades, so it alone asks."""
    settings = judge_settings() if rank == 0 else None
    return Judge(settings) if settings else None


def _batch_size(config: Config, prompts: PromptSet) -> int:
    """Prompts a step draws. Where none is drawn (replay, validation only), any number that the set can serve will
    do."""
    draws = not (config.rollout.replay or config.trainer.val_only)
    return config.data.train_batch_size if draws else min(config.data.train_batch_size, len(prompts))


def _total_steps(config: Config, prompts: PromptSet) -> int:
    if config.rollout.replay:
        return _replayed_steps(config)
    return (
        config.trainer.total_training_steps
        or config.trainer.total_epochs * len(prompts) // config.data.train_batch_size
    )


def _replayed_steps(config: Config) -> int:
    """trainer.total_training_steps, or as many as are stored; UserError when one of them is not stored."""
    stored = stored_steps(config.rollout.replay)
    last = config.trainer.total_training_steps or stored[-1]
    for step in range(1, last + 1):
        if step not in stored:
            raise UserError(
                f"rollout.replay={config.rollout.replay} holds no rollouts of step {step}, only of "
                f"{', '.join(map(str, stored))}: set trainer.total_training_steps to a step up to which all are stored"
            )
    return last


def _resume_step(config: Config, checkpoints: CheckpointStore) -> int:
    """The finished step the run goes on after, 0 for a new run; looked up before any work.

    trainer.resume=never in a folder with checkpoints would mix two runs, so it is refused, and so is a checkpoint of
    another model.
    """
    steps = checkpoints.steps()
    if not steps:
        return 0
    if config.trainer.resume == "never":
        raise UserError(
            f"trainer.resume=never, but {checkpoints.path(steps[-1])} is a checkpoint of an earlier run: choose "
            "another trainer.name, or set trainer.resume=auto to go on from it"
        )
    checkpoints.check(steps[-1])
    return steps[-1]
