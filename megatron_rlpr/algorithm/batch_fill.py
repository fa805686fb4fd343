"""Collect kept groups until they make a training batch; account for every group that was offered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_rlpr.types import ScoredGroup


class BatchFill:
    """The bookkeeping of one step's generate-and-filter rounds.

        fill = BatchFill(train_batch_size, max_rounds)
        while fill.wants_more:
            fill.offer(groups, keep)
        batch, surplus = fill.take()

    `history` holds every offered group in order; each is in exactly one of batch, surplus (kept, but one too many) and
    `dropped`. carried: surplus of an earlier step, used again with its old responses (filter.cache_regenerate=false).
    """

    def __init__(self, train_batch_size: int, max_rounds: int, carried: Sequence[ScoredGroup] = ()) -> None:
        self.train_batch_size = train_batch_size
        self.max_rounds = max_rounds
        self.rounds = 0
        self.dropped: list[ScoredGroup] = []
        self.history: list[ScoredGroup] = []
        self._kept = list(carried)

    @property
    def wants_more(self) -> bool:
        """Another round is both needed and allowed."""
        return len(self._kept) < self.train_batch_size and self.rounds < self.max_rounds

    @property
    def kept_fraction(self) -> float:
        """Share of the offered groups that passed the filter; 1 when none was offered."""
        return 1.0 - len(self.dropped) / len(self.history) if self.history else 1.0

    @property
    def kept(self) -> list[bool]:
        """Whether each group of `history` passed the filter."""
        dropped = {id(group) for group in self.dropped}
        return [id(group) not in dropped for group in self.history]

    @property
    def content(self) -> bytes:
        """Prompt, verdict and rewards of every offered group, in order: on all ranks the same to the last bit."""
        heads = np.array([(g.group.prompt.index, kept) for g, kept in zip(self.history, self.kept, strict=True)])
        return heads.tobytes() + b"".join(group.final_rewards.tobytes() for group in self.history)

    def offer(self, groups: Sequence[ScoredGroup], keep: Sequence[bool]) -> None:
        """Add one round: groups[i] is used if keep[i], else dropped."""
        for group, wanted in zip(groups, keep, strict=True):
            (self._kept if wanted else self.dropped).append(group)
        self.history.extend(groups)
        self.rounds += 1

    def take(self) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """(batch, surplus): the first train_batch_size kept groups (fewer if the rounds ran out) and the rest."""
        return self._kept[: self.train_batch_size], self._kept[self.train_batch_size :]
