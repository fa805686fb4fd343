"""rollout.pipeline=1: the next step's first round is generated while the policy trains on this step's.

Its responses come from weights that are one hand-over old, or from both when the hand-over met them in flight;
algorithm.importance_cap corrects for that. What is in flight is no part of a checkpoint: a resumed run draws the same
prompts and generates them again, with the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.rollout.engine import ProgressCallback
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.requests import RolloutRequest
from megatron_rlpr.types import Prompt, RolloutGroup


class RolloutPipeline:
    """One round of one step ahead. All ranks call it together."""

    def __init__(
        self,
        rollouts: RayRollouts,
        prompts: PromptSource,
        request: Callable[[Sequence[Prompt], int], RolloutRequest],
        last_step: int,
    ) -> None:
        """request: what to ask for these prompts in that step."""
        self._rollouts = rollouts
        self._prompts = prompts
        self._request = request
        self._last_step = last_step
        self._before: Callable[[], dict[str, Any]] | None = None

    def begin(self, step: int) -> None:
        """Draw the step's first prompts and start to answer them; nothing after the last step."""
        if step > self._last_step:
            return
        self._before = self._prompts.remembered()
        self._rollouts.begin(self._request(self._prompts.next_batch(), step))

    @property
    def begun(self) -> bool:
        """Whether a round is under way that nobody has collected."""
        return self._before is not None

    def collect(self, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """The round that is under way, when it is finished."""
        self._before = None
        return self._rollouts.collect(on_progress)

    def remembered(self) -> Callable[[], dict[str, Any]]:
        """Where the prompts stand for a checkpoint, as theirs: before the draw that is under way."""
        return self._before or self._prompts.remembered()
