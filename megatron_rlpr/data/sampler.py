"""Which prompts a step works on: shuffled epochs, a cache of surplus prompts, resumable at any prompt.

Invariants (tests/unit/data/test_sampler.py):
1. Every prompt is drawn exactly once per epoch; where an epoch ends, the batch goes on into the next one.
2. No prompt occurs twice in a batch.
3. load_state_dict(state_dict()) continues with exactly the batches that would have come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_rlpr.types import UserError


class PromptSampler:
    """Serves batches of prompt positions (0 <= position < num_prompts).

    The order of an epoch depends on (seed, epoch) alone. Prompts put back with add_to_cache are served first, as soon
    as a whole batch of different ones is waiting (spec section 3, filter_cache_regenerate). epoch: those drawn so far.
    """

    def __init__(self, num_prompts: int, batch_size: int, shuffle: bool, seed: int) -> None:
        if not 0 < batch_size <= num_prompts:
            raise UserError(
                f"data.train_batch_size={batch_size} must be between 1 and the number of prompts, {num_prompts}"
            )
        self.num_prompts = num_prompts
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self.epoch = 0
        self._position = 0
        self._deferred: list[int] = []
        self._cache: list[int] = []
        self._order = self._epoch_order()

    @property
    def cached(self) -> tuple[int, ...]:
        """Positions that wait in the surplus cache, oldest first."""
        return tuple(self._cache)

    def next_batch(self) -> list[int]:
        """batch_size different prompt positions: from the cache when it holds enough, else the next of the epoch."""
        if len(set(self._cache)) >= self.batch_size:
            batch = list(dict.fromkeys(self._cache))[: self.batch_size]
            for position in batch:
                self._cache.remove(position)
            return batch
        return self._draw_batch()

    def add_to_cache(self, positions: Iterable[int]) -> None:
        """Keep prompts that a step had too many of for a later step, which generates new responses for them."""
        self._cache.extend(int(position) for position in positions)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the coming batches, as plain JSON values."""
        return {
            "num_prompts": self.num_prompts,
            "epoch": self.epoch,
            "position": self._position,
            "deferred": list(self._deferred),
            "cache": list(self._cache),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where state_dict() was taken; with another seed or order, at the same place in the new one.

        Raises UserError when the number of prompts is not the same.
        """
        if state["num_prompts"] != self.num_prompts:
            raise UserError(
                f"the checkpoint's sampler has num_prompts={state['num_prompts']} but this run has {self.num_prompts}; "
                "resume with the same data files and data.max_prompt_length, or start a new run"
            )
        self.epoch, self._position = state["epoch"], state["position"]
        self._deferred, self._cache = list(state["deferred"]), list(state["cache"])
        self._order = self._epoch_order()

    def _draw_batch(self) -> list[int]:
        # A batch that goes on into the next epoch may meet a prompt it already holds; that one opens the next batch.
        waiting, self._deferred = self._deferred, []
        batch: dict[int, None] = {}  # in the order of insertion
        while len(batch) < self.batch_size:
            position = waiting.pop(0) if waiting else self._draw()
            if position in batch:
                self._deferred.append(position)
            else:
                batch[position] = None
        self._deferred += waiting
        return list(batch)

    def _draw(self) -> int:
        position = int(self._order[self._position])
        self._position += 1
        if self._position == self.num_prompts:
            self.epoch, self._position = self.epoch + 1, 0
            self._order = self._epoch_order()
        return position

    def _epoch_order(self) -> npt.NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self.num_prompts)
        # RandomState's streams are frozen by numpy, so a run can be resumed under a newer version.
        return np.random.RandomState([self._seed % 2**32, self.epoch]).permutation(self.num_prompts)
