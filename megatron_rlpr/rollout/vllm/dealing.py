"""Which colocated engine answers which prompt of a call. Every rank keeps the same account and decides alike.

Engines that have room for all of it get their prompts at once, in turn. Where there is more than they decode at once,
each is filled first; what is left goes, a whole prompt at a time, to the engine with the fewest outstanding tokens as
soon as one has room. The ranks look at each other's progress after so many decoding steps, not after so much time: what
an engine gets depends on weights and requests alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from megatron_rlpr.rollout.balancing import Load, least_loaded, outstanding_tokens

STEPS_PER_ROUND = 32
"""Decoding steps between two looks; the faster engines wait for the slowest after each."""


class Deal:
    """The prompts of one call. A request's number is its prompt's times n, plus its sample's."""

    def __init__(self, sizes: Sequence[int], n: int, engines: int, room: int | None) -> None:
        """sizes: most tokens of a prompt and one response to it. room: sequences an engine decodes at once, or None:
        everything is given out at once."""
        self._sizes, self._n = sizes, n
        self._room = len(sizes) * n if room is None else room
        self._waiting = deque(range(len(sizes)))
        self._unfinished: list[set[int]] = [set() for _ in range(engines)]
        self._written = [0] * engines
        self._begun = False

    @property
    def all_dealt(self) -> bool:
        """Whether no prompt waits for an engine any more."""
        return not self._waiting

    def give(self) -> list[list[int]]:
        """For every engine, the prompts it is to begin now."""
        given: list[list[int]] = [[] for _ in self._unfinished]
        for _ in range(0 if self._begun else max(1, self._room // self._n)):
            for engine in range(len(given)):
                if self._waiting:
                    self._begin(engine, given)
        self._begun = True
        while self._waiting:
            loads = {engine: self._load(engine) for engine in range(len(given))}
            chosen = least_loaded(loads, max(1, self._room - self._n + 1))
            if chosen is None:
                break
            self._begin(chosen, given)
        return given

    def took(self, engine: int, finished: Iterable[int], written: int) -> None:
        """What an engine finished since the last look, by request number, and the tokens of what it goes on with."""
        self._unfinished[engine].difference_update(finished)
        self._written[engine] = written

    def _begin(self, engine: int, given: list[list[int]]) -> None:
        prompt = self._waiting.popleft()
        given[engine].append(prompt)
        self._unfinished[engine].update(range(prompt * self._n, (prompt + 1) * self._n))

    def _load(self, engine: int) -> Load:
        sizes = [(self._sizes[number // self._n], 0) for number in self._unfinished[engine]]
        return Load(len(sizes), outstanding_tokens(sizes, self._written[engine]))
