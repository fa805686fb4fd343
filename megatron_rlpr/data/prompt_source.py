"""The training prompts of a run: which come next, and what a step had too much of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_rlpr.data.carried_groups import from_state, to_state
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.sampler import PromptSampler
from megatron_rlpr.types import Prompt, ScoredGroup


class PromptSource:
    """The sampler over a prompt set, and what a step had too much of.

    Surplus groups go back as prompts, to be answered again by a later policy (regenerate_surplus), or wait for the next
    step as they are.
    """

    def __init__(
        self,
        prompts: PromptSet,
        sampler: PromptSampler,
        regenerate_surplus: bool,
        whole: Callable[[ScoredGroup], ScoredGroup] = lambda group: group,
    ) -> None:
        """whole: gives a group the texts that other ranks own, where it is to be stored."""
        self._prompts = prompts
        self._sampler = sampler
        self._regenerate_surplus = regenerate_surplus
        self._whole = whole
        self._carried: list[ScoredGroup] = []
        self._position_of = {prompt.index: position for position, prompt in enumerate(prompts.prompts)}

    @property
    def epoch(self) -> int:
        """Epochs drawn completely."""
        return self._sampler.epoch

    @property
    def cached(self) -> int:
        """Surplus prompts that wait for a later step."""
        return len(self._sampler.cached) + len(self._carried)

    def next_batch(self) -> list[Prompt]:
        """The prompts of the next generation round."""
        return [self._prompts.prompts[position] for position in self._sampler.next_batch()]

    def put_back(self, surplus: Sequence[ScoredGroup]) -> None:
        """Groups that passed the filter but did not fit into the batch."""
        if self._regenerate_surplus:
            self._sampler.add_to_cache(self._position_of[group.group.prompt.index] for group in surplus)
        else:
            self._carried = list(surplus)

    @property
    def carried(self) -> list[ScoredGroup]:
        """Groups of the last step that the next one starts with."""
        return self._carried

    def remembered(self) -> Callable[[], dict[str, Any]]:
        """Makes the present `state_dict` when it is called, whatever has been drawn until then: groups are long."""
        sampler, carried = self._sampler.state_dict(), self._carried
        return lambda: {"sampler": sampler, "carried": to_state([self._whole(group) for group in carried])}

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands and what it carries, JSON-serialisable."""
        return self.remembered()()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self._sampler.load_state_dict(state["sampler"])
        self._carried = from_state(state["carried"])
