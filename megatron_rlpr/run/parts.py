"""The parts of a run, as the trainer uses them, and the few verbs that need several of them at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from megatron_rlpr.actor.checkpoint import CheckpointStore, random_state, restore_random_state
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.algorithm import learning_rate
from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.kl import KLController
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import TrainingBatch, with_advantages
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.evaluation.schedule import ValidationSchedule
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.ray.pipeline import RolloutPipeline
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.run.engines import training_request
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.types import FloatArray, Prompt, RolloutGroup, ScoredGroup, ScoreRequest
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.hf_export import HfExport


@dataclass
class RunParts:
    """Everything a trainer needs, built by `build.build_parts`."""

    config: Config
    folder: Path
    tokenizer: Any
    policy: MegatronPolicy
    reference: MegatronPolicy | None
    kl_controller: KLController
    rollouts: Rollouts
    pipeline: RolloutPipeline | None
    scorer: GroupScorer
    prompts: PromptSource
    std_filter: StdFilter
    hand_over: HandOver
    validation: ValidationSchedule
    checkpoints: CheckpointStore
    hf_export: HfExport | None
    resume_step: int
    tracker: Tracker
    console: Console
    clock: Clock
    total_steps: int
    lock: IO[str] | None
    started: float = field(default_factory=time.time)

    @property
    def loss_terms(self) -> LossTerms:
        return LossTerms.of(self.config.algorithm)

    @property
    def max_rounds(self) -> int:
        """A stored step holds all its rounds already."""
        return 1 if self.config.rollout.replay else self.config.filter.max_rounds

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1: a function of the step alone, so a resumed run goes on
        exactly."""
        actor = self.config.actor
        return actor.lr * learning_rate.multiplier(
            step - 1,
            warmup_steps=actor.lr_warmup_steps,
            total_steps=self.total_steps,
            style=actor.lr_decay_style,
            min_ratio=actor.min_lr / actor.lr if actor.lr else 0.0,
        )

    def begin_rollouts(self, step: int) -> None:
        """Let the engines start on the step's first round while the policy trains (rollout.pipeline=1)."""
        if self.pipeline is not None:
            self.pipeline.begin(step)

    def next_groups(self, step: int) -> list[RolloutGroup]:
        """The step's next round of rollouts: the one that was begun, if any, else generated now for the next
        prompts."""
        if self.pipeline is None or not self.pipeline.begun:
            return self.generate(self.prompts.next_batch(), step)
        with self.console.phase("rollout") as progress:
            return self.pipeline.collect(lambda tokens, done, _: progress.update(done, tokens))

    def generate(self, prompts: Sequence[Prompt], step: int) -> list[RolloutGroup]:
        """n responses for every prompt, with progress on the console."""
        n = self.config.rollout.n
        with self.console.phase("rollout", total=len(prompts) * n) as progress:
            return self.rollouts.generate(
                training_request(self.config, prompts, step), lambda tokens, done, _: progress.update(done, tokens)
            )

    def with_advantages(self, groups: Sequence[ScoredGroup], step: int) -> TrainingBatch:
        """The batch's advantages; asks the reference policy and for greedy baselines where the algorithm needs them."""
        reference = self._reference_log_probs(groups)
        baselines = self._greedy_rewards(groups, step) if self.config.algorithm.adv_estimator == "remax" else None
        batch = with_advantages(groups, self.config, reference, self.kl_controller.value, baselines)
        self.kl_controller.update(batch.response_kls)
        return batch

    def _reference_log_probs(self, groups: Sequence[ScoredGroup]) -> list[list[FloatArray]] | None:
        if self.reference is None:
            return None
        requests = [ScoreRequest.of_response(g.group.prompt, r.token_ids) for g in groups for r in g.group.responses]
        with self.clock.phase("score"):
            scores = iter(self.reference.score(requests))
        return [[next(scores).log_probs for _ in g.group.responses] for g in groups]

    def _greedy_rewards(self, groups: Sequence[ScoredGroup], step: int) -> list[float]:
        """The reward of the greedy response to every prompt of the batch (remax's baseline)."""
        sampling = SamplingSettings(temperature=0.0, max_tokens=self.config.data.max_response_length)
        prompts = [group.group.prompt for group in groups]
        with self.clock.phase("rollout"):
            greedy = self.rollouts.generate(RolloutRequest(prompts, 1, step, self.config.trainer.seed, sampling))
        return [float(group.rewards[0].reward) for group in self.scorer.score(greedy, self.prompts.base_table)]

    def store_rollouts(self, step: int, fill: BatchFill, batch: TrainingBatch) -> None:
        """Write everything the step generated, in the order it came, to <run folder>/rollouts (first rank)."""
        if not self.config.tracking.save_rollouts or dist.get_rank() != 0:
            return
        advantage_of = {
            id(group): [float(tokens[0]) if len(tokens) else 0.0 for tokens in advantages]
            for group, advantages in zip(batch.groups, batch.advantages, strict=True)
        }
        dropped = {id(group) for group in fill.dropped}
        write_rollouts(
            self.folder / "rollouts",
            step,
            fill.history,
            advantages=[advantage_of.get(id(group)) for group in fill.history],
            kept=[id(group) not in dropped for group in fill.history],
            decode=lambda ids: str(self.tokenizer.decode(list(ids), skip_special_tokens=False)),
        )

    def resume(self) -> int:
        """Load the checkpoint the run goes on from; returns the last finished step (0: a new run)."""
        if not self.resume_step:
            return 0
        state = self.checkpoints.load(self.resume_step, self.policy)
        self.prompts.load_state_dict(state["prompts"])
        self.std_filter.load_state_dict(state["std_filter"])
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.validation.load_state_dict(state["validation"])
        restore_random_state(state["random"])
        self.started = time.time() - state["elapsed_s"]
        self.console.message(f"resumed {self.checkpoints.path(self.resume_step)}")
        return int(state["step"])

    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint, and the Hugging Face folder that belongs to it, when this step is one that has one."""
        frequency = self.config.trainer.save_freq
        last = step == self.total_steps
        if frequency < 0 or not (last or (frequency > 0 and step % frequency == 0)):
            return
        state = {
            "step": step,
            "prompts": self.prompts.state_dict() if self.pipeline is None else self.pipeline.prompts_state(),
            "std_filter": self.std_filter.state_dict(),
            "kl_controller": self.kl_controller.state_dict(),
            "validation": self.validation.state_dict(),
            "random": random_state(),
            "elapsed_s": time.time() - self.started,
        }
        with self.clock.phase("checkpoint"):
            if self.hf_export is not None:
                self.hf_export.save(step)  # first: a run that is killed in between makes this step again
            self.checkpoints.save(step, self.policy, state)
