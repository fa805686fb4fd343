"""The training loop, every phase a line of it.

base probabilities -> resume -> hand-over -> validate
    -> (generate -> score -> filter, until the batch is full) -> greedy baselines -> engines sleep
    -> reference log-probs, scores without reasoning -> advantages
    -> update -> hand-over, which wakes them -> store, track -> validate -> checkpoint, until the last step
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.learning_rate import learning_rate
from megatron_rlpr.algorithm.training_batch import (
    TrainingBatch,
    filter_stds,
    loss_weights,
    mini_batches,
    with_advantages,
)
from megatron_rlpr.reward.metrics import length_metrics
from megatron_rlpr.reward.reasoning import gain_metrics
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.run import state
from megatron_rlpr.run.engines import training_request
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.system import stop_signals
from megatron_rlpr.system.decisions import first_rank_decides, require_same
from megatron_rlpr.system.process_environment import release_free_memory
from megatron_rlpr.tracking.step_metrics import step_metrics
from megatron_rlpr.types import FloatArray, RolloutGroup, ScoredGroup, ScoreRequest, UpdateResult, UserError

MOST_SKIPPED_STEPS = 3
"""Steps in a row without a usable gradient after which a run stops; one may be a bad batch."""


class Trainer:
    """Owns the order of things; every verb lives in a room of its own (see `run.parts`). All ranks run it together."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.skipped_steps = 0

    def run(self) -> None:
        """Go on from the newest checkpoint (or from nothing), train to the last step, validate, write the summary.

        A signal has the run stop with its last complete step saved (Stopped). Before and after the steps nothing new
        could be saved, and it ends at once.
        """
        parts = self.parts
        self.base_probabilities()
        done = state.resume(parts)
        self.hand_over(done)
        parts.validation.before_training(done)
        if parts.config.trainer.val_only:
            return
        with stop_signals.held():
            for step in range(done + 1, parts.total_steps + 1):
                with state.saved_when_stopped(parts, step - 1):
                    self.train_step(step)
                with state.saved_when_stopped(parts, step):
                    parts.validation.after_step(step)
                    self.checkpoint(step)
                    stop_signals.agree()
        parts.writer.settle()
        parts.validation.after_training(parts.total_steps)

    def base_probabilities(self) -> None:
        """How likely every reference answer is to the initial policy with no reasoning; what is stored stays."""
        for name, prompts in self.parts.prompt_sets.items():
            with self.parts.console.phase(f"base probabilities of {name}") as progress:
                self.parts.scorer.complete(name, prompts.prompts, progress.part)

    def train_step(self, step: int) -> None:
        """One step on one batch; afterwards the engines have the new weights and the numbers are written.

        Raises Stopped, before anything but prompts and filter has changed, when the run was asked to stop.
        """
        parts, clock = self.parts, self.parts.clock
        with clock.phase("step"):
            fill = self.fill_batch(step)
            groups, surplus = fill.take()
            parts.prompts.put_back(surplus)
            baselines = self.greedy_baselines(groups, step)
            parts.rollouts.sleep()
            reference = self.reference_log_probs(groups)
            without = self.without_reasoning(groups)
            state.settle(parts)
            stop_signals.agree()
            batch = with_advantages(groups, parts.config, reference, parts.kl_controller.value, baselines)
            parts.kl_controller.update(batch.response_kls)
            if parts.pipeline is not None:
                parts.pipeline.begin(step + 1)
            lr = learning_rate(parts.config.actor, step, parts.total_steps)
            updates = self.update(batch, lr)
            self.stop_if_nothing_is_learnt(step, updates)
            with clock.phase("hand_over"):
                self.hand_over(step)
        mode, moved, phases = parts.config.reward.format_mode, parts.policy.memory.take_moved(), parts.clock.order
        metrics = {
            "epoch": parts.prompts.epoch,
            **length_metrics(parts.tokenizer, groups, mode, parts.shares),
            **gain_metrics(groups, without),
            **step_metrics(fill, batch, updates, lr, clock.take(), parts.std_filter, parts.prompts.cached),
            "reward/ungraded": self.ungraded(),
            **parts.hand_over.metrics,
            "rollout/engines_replaced": parts.rollouts.engines_replaced,
            "memory/device_in_use_asleep_gb": parts.rollouts.device_in_use_gb,
            **{f"memory/{what}_gb": nbytes / 1e9 for what, nbytes in asdict(moved).items()},
        }
        if parts.config.tracking.save_rollouts:
            parts.writer.begin(step, fill.history, batch.first_advantages(fill.history), fill.kept)
        first_rank_decides(lambda: self.record(step, metrics, phases))
        release_free_memory()

    def fill_batch(self, step: int) -> BatchFill:
        """Generate, score and filter groups until there are enough for a batch, or the rounds run out."""
        parts, config = self.parts, self.parts.config
        rounds = 1 if config.rollout.replay else config.filter.max_rounds  # a stored step holds all its rounds
        fill = BatchFill(config.data.train_batch_size, rounds, parts.prompts.carried)
        parts.std_filter.begin_step(step)
        while fill.wants_more:
            groups = self.generate(step)
            stop_signals.agree()
            with parts.console.phase("score") as progress:
                scored = parts.scorer.score(groups, "train", progress.advance)
            fill.offer(scored, parts.std_filter.judge(scored, filter_stds(scored, config)))
        parts.std_filter.end_step()
        require_same(fill.content, f"step {step}: rewards or kept groups")
        return fill

    def generate(self, step: int) -> list[RolloutGroup]:
        """The step's next round of rollouts: the one that was begun while the policy trained, if any, or a new one."""
        parts = self.parts
        parts.policy.memory.offload()
        with parts.clock.phase("rollout"):
            if parts.pipeline is not None and parts.pipeline.begun:
                with parts.console.phase("rollout") as progress:
                    return parts.pipeline.collect(progress.generated)
            request = training_request(parts.config, parts.prompts.next_batch(), step)
            with parts.console.phase("rollout", total=len(request.prompts) * request.n) as progress:
                return parts.rollouts.generate(request, progress.generated)

    def reference_log_probs(self, groups: Sequence[ScoredGroup]) -> list[list[FloatArray]] | None:
        """The initial policy's log-probs of every response, where a KL to it counts."""
        if self.parts.reference is None:
            return None
        responses = [(g.group.prompt, r) for g in groups for r in g.group.responses]
        requests = [ScoreRequest.of_response(prompt, response.token_ids) for prompt, response in responses]
        with self.parts.clock.phase("score"), self.parts.console.phase("reference log-probs") as progress:
            each = iter(self.parts.reference.score(requests, progress.advance))
        self.parts.reference.memory.offload()
        return [[next(each).log_probs for _ in g.group.responses] for g in groups]

    def greedy_baselines(self, groups: Sequence[ScoredGroup], step: int) -> list[float] | None:
        """The reward of the greedy response to every prompt of the batch, which remax subtracts."""
        parts, config = self.parts, self.parts.config
        if config.algorithm.adv_estimator != "remax":
            return None
        greedy = SamplingSettings(temperature=0.0, max_tokens=config.data.max_response_length)
        prompts = [group.group.prompt for group in groups]
        with parts.clock.phase("rollout"), parts.console.phase("greedy baselines") as progress:
            asked = RolloutRequest(prompts, 1, step, config.trainer.seed, greedy)
            answers = parts.rollouts.generate(asked, progress.generated)
        with parts.console.phase("score baselines") as progress:
            return [float(g.rewards[0].reward) for g in parts.scorer.score(answers, "train", progress.advance)]

    def without_reasoning(self, groups: Sequence[ScoredGroup]) -> list[float | None]:
        """The policy's reference probability of every prompt of the batch with no reasoning, where that is tracked."""
        if not self.parts.config.tracking.reasoning_gain:
            return [None] * len(groups)
        with self.parts.console.phase("score without reasoning") as progress:
            return self.parts.scorer.without_reasoning([group.group for group in groups], progress.advance)

    def update(self, batch: TrainingBatch, lr: float) -> list[UpdateResult]:
        """One optimizer step for every mini-batch, in order."""
        parts, config = self.parts, self.parts.config
        terms = LossTerms.of(config.algorithm)
        steps = mini_batches(batch, config.actor.ppo_mini_batch_size)
        with parts.clock.phase("update"), parts.console.phase("update") as progress:
            return [
                parts.policy.update(
                    sequences, loss_weights(sequences, config), terms, lr, progress.part(len(steps) - number)
                )
                for number, sequences in enumerate(steps)
            ]

    def stop_if_nothing_is_learnt(self, step: int, updates: Sequence[UpdateResult]) -> None:
        """Raise UserError when no optimizer step of the last MOST_SKIPPED_STEPS steps had a gradient to follow."""
        skipped = bool(updates) and not any(math.isfinite(update.grad_norm) for update in updates)
        self.skipped_steps = self.skipped_steps + 1 if skipped else 0
        if self.skipped_steps >= min(MOST_SKIPPED_STEPS, self.parts.total_steps):
            fault = f"step {step}: the gradients of the last {self.skipped_steps} steps were NaN or infinite"
            raise UserError(f"{fault}, so none changed the weights: lower actor.lr, or set actor.dtype=float32")

    def hand_over(self, step: int) -> None:
        """Give the weights to the engines; UserError when an update has ruined them: no checkpoint is made of those."""
        fix = "the newest checkpoint is as it was; start again from it with a lower actor.lr or actor.clip_grad"
        self.parts.policy.check_weights(f"the weights after step {step} are lost ({fix})")
        self.parts.policy.memory.offload()
        self.parts.hand_over.send(step)

    def checkpoint(self, step: int) -> None:
        """Write what the run goes on from, when it is time; engines that slept meanwhile get the weights again."""
        state.save(self.parts, step)
        if self.parts.rollouts.asleep:
            self.hand_over(step)

    def record(self, step: int, metrics: Mapping[str, Any], phases: Sequence[str]) -> None:
        """Write the step's metrics. For the first rank."""
        self.parts.tracker.log_step(step, metrics)
        self.parts.tracker.log_phases(step, phases)
        for warning in self.parts.collapse_alarm.watch(step, metrics):
            self.parts.console.message(warning)

    def ungraded(self) -> int:
        """Answers that the graders of all ranks gave no verdict on so far."""
        mine = np.array([self.parts.graders.failures.total()], dtype=np.int32)
        return sum(int(failures[0]) for (failures,) in self.parts.shares.gather(lambda: [mine], "counting"))
