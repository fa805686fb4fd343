"""Stored rollouts in place of engines: the same responses again, to debug a step or to compare layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from megatron_rlpr.rollout.engine import ProgressCallback
from megatron_rlpr.rollout.requests import RolloutRequest
from megatron_rlpr.rollout.store import read_rollouts, stored_steps
from megatron_rlpr.types import RolloutGroup, UserError
from megatron_rlpr.weights.receiver import Announcement


class ReplayRollouts:
    """Answers every step with what a run stored for it (`rollout.replay=runs/<name>/rollouts`)."""

    def __init__(self, folder: str | Path, ranks: int = 1) -> None:
        """ranks: own the groups in turn. UserError when the folder is missing or holds no stored step."""
        self._folder = Path(folder)
        self._ranks = ranks
        self.weight_version = 0
        """The last hand-over; the stored responses keep the versions they were made with."""
        self.engines_replaced = 0
        """There are none."""
        self.device_in_use_gb = 0.0
        self.asleep = False
        if not stored_steps(folder):
            raise UserError(
                f"rollout.replay={folder}: holds no step_*.parquet; give a run's rollouts folder, e.g. "
                "runs/<name>/rollouts"
            )

    def generate(self, asked: RolloutRequest, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """All groups of the step in stored order, those the filter dropped included, whatever else is asked for.

        The stored step holds every round of its generation, so one call is the whole step.
        """
        stored = read_rollouts(self._folder, asked.step)
        groups = [replace(group, owner=number % self._ranks) for number, group in enumerate(stored)]
        if on_progress is not None:
            responses = [response for group in groups for response in group.responses]
            on_progress(sum(len(response.token_ids) for response in responses), len(responses), len(responses))
        return groups

    def update_weights(self, announced: Announcement, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """There is no engine: the stream is left alone, on every rank alike."""
        self.weight_version = announced.version

    def sleep(self) -> None:
        """There is nothing to sleep."""

    def rebuild_engines(self) -> None:
        """There are none."""
