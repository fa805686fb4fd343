"""The training loop.

prompts -> rollouts.generate -> scorer.score (rewards included) -> std filter, until the batch is full
        -> advantages -> policy.update -> hand_over -> track, validate, checkpoint
"""

from __future__ import annotations

from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.training_batch import filter_stds, loss_weights, mini_batches
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.system.process_environment import release_free_memory
from megatron_rlpr.tracking.step_metrics import (
    filter_metrics,
    memory_metrics,
    reward_metrics,
    speed_metrics,
    update_metrics,
)


class Trainer:
    """Owns the order of things; every verb lives in a room of its own (see `run_parts`)."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts

    def run(self) -> None:
        """Go on from the newest checkpoint (or from nothing), train to the last step, validate, write the summary."""
        parts = self.parts
        done = parts.resume()
        parts.hand_over.send(done)
        parts.validation.before_training(done)
        if parts.config.trainer.val_only:
            return
        for step in range(done + 1, parts.total_steps + 1):
            self.train_step(step)
            parts.validation.after_step(step)
            parts.save_checkpoint(step)
        parts.validation.after_training(parts.total_steps)

    def train_step(self, step: int) -> None:
        """One step on one batch; afterwards the engines have the new weights and the numbers are written."""
        parts, clock = self.parts, self.parts.clock
        with clock.phase("step"):
            fill = self.fill_batch(step)
            groups, surplus = fill.take()
            parts.prompts.put_back(surplus)
            batch = parts.with_advantages(groups, step)
            parts.begin_rollouts(step + 1)
            lr = parts.learning_rate(step)
            with clock.phase("update"), parts.console.phase("update") as progress:
                updates = [
                    parts.policy.update(
                        sequences, loss_weights(sequences, parts.config), parts.loss_terms, lr, progress.advance
                    )
                    for sequences in mini_batches(batch, parts.config.actor.ppo_mini_batch_size)
                ]
            with clock.phase("hand_over"):
                parts.hand_over.send(step)
        seconds = clock.take()
        everything = [*groups, *surplus, *fill.dropped]
        metrics = {
            "epoch": parts.prompts.epoch,
            **reward_metrics(groups or fill.history),
            **filter_metrics(parts.std_filter, fill, batch, parts.prompts.cached),
            **update_metrics(updates, lr),
            **speed_metrics(seconds, everything, updates),
            **memory_metrics(),
            "weights/hand_overs_repeated": parts.hand_over.repeated,
            "rollout/engines_replaced": parts.rollouts.engines_replaced,
        }
        parts.store_rollouts(step, fill, batch)
        parts.tracker.log_step(step, metrics)
        release_free_memory()

    def fill_batch(self, step: int) -> BatchFill:
        """Generate, score and filter groups until there are enough for a batch, or the rounds run out."""
        parts, clock = self.parts, self.parts.clock
        parts.std_filter.begin_step(step)
        fill = BatchFill(parts.config.data.train_batch_size, parts.max_rounds, parts.prompts.carried)
        while fill.wants_more:
            with clock.phase("rollout"):
                groups = parts.next_groups(step)
            with parts.console.phase("score") as progress:
                scored = parts.scorer.score(groups, parts.prompts.base_table, progress.advance)
            fill.offer(scored, parts.std_filter.judge(scored, filter_stds(scored, parts.config)))
        parts.std_filter.end_step()
        return fill
