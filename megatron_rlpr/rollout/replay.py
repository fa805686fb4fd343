"""Stored rollouts in place of engines: the same responses again, to debug a step or to compare layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from megatron_rlpr.rollout.engine import ProgressCallback, SamplingSettings
from megatron_rlpr.rollout.store import read_rollouts, stored_steps
from megatron_rlpr.types import Prompt, RolloutGroup, UserError


class ReplayRollouts:
    """Answers every step with what a run stored for it (`rollout.replay=runs/<name>/rollouts`)."""

    def __init__(self, folder: str | Path) -> None:
        """UserError when the folder is missing or holds no stored step."""
        self._folder = Path(folder)
        self._version = 0
        self.engines_replaced = 0
        """There are none."""
        if not stored_steps(folder):
            raise UserError(
                f"rollout.replay={folder}: holds no step_*.parquet; give a run's rollouts folder, e.g. "
                "runs/<name>/rollouts"
            )

    @property
    def weight_version(self) -> int:
        """The last hand-over; the stored responses keep the versions they were made with."""
        return self._version

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        step: int,
        run_seed: int,
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[RolloutGroup]:
        """All groups of the step in stored order, those the filter dropped included, whatever is asked for.

        The stored step holds every round of its generation, so one call is the whole step.
        """
        groups = read_rollouts(self._folder, step)
        if on_progress is not None:
            responses = [response for group in groups for response in group.responses]
            on_progress(sum(len(response.token_ids) for response in responses), len(responses), len(responses))
        return groups

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> None:
        """There is no engine: the stream is left alone, on every rank alike."""
        self._version = version

    def rebuild_engines(self) -> None:
        """There are none."""
