"""Keeps the engines at work: a plain loop (`turn`) over their answers, which replaces those that die or hang.

Every engine has at most one call outstanding, and works only inside a call: `advance` takes new requests in, decodes
for a fraction of a second and returns what is finished. Three rules. An engine that hangs (see `heartbeat`; a late
answer alone is no fault) or answers with an error is killed and started again, and its unfinished requests go back to
the front of the queue. An engine whose weights are not the current ones gets no work. All others get requests by
outstanding tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from megatron_rlpr.rollout.balancing import least_loaded
from megatron_rlpr.rollout.engine import EngineSettings, RolloutError
from megatron_rlpr.rollout.ray.actor import Advance, Refusal, Request
from megatron_rlpr.rollout.ray.engine import Edition, PooledEngine
from megatron_rlpr.rollout.ray.request_queue import RequestQueue
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError

EventCallback = Callable[[str], None]
"""Told in one line about every engine that is replaced, and every hand-over that is repeated."""
CALL_S = 0.25
"""How long an engine decodes per call: long against the call's own millisecond, short against a step."""
_FAILURES_IN_A_ROW = 3
"""So many failures per engine with nothing finished in between are not an accident."""
_NOTHING_USABLE = -1
"""In place of the number of an edition."""


class EngineScheduler:
    """Not thread-safe; the pool's lock covers it."""

    def __init__(self, engines: int, settings: EngineSettings, timeout_s: float, on_event: EventCallback) -> None:
        """Start the engines and wait for all; arguments as the pool's."""
        self.queue = RequestQueue()
        self.edition = Edition(0, Announcement({}, 0))
        """The current weights."""
        self.replaced = 0
        """Engines replaced so far."""
        self._room = settings.max_num_seqs
        self._on_event = on_event
        self._failures = 0
        self.engines = [PooledEngine(number, settings, timeout_s) for number in range(engines)]
        while len(self.started) < engines:
            self.turn()

    @property
    def started(self) -> list[PooledEngine]:
        """The engines that have answered since their last start."""
        return [engine for engine in self.engines if engine.edition is not None]

    @property
    def outdated(self) -> list[PooledEngine]:
        """Started engines without the current weights."""
        return [engine for engine in self.engines if engine.edition not in (None, self.edition.number)]

    def turn(self, apart_from: Sequence[PooledEngine] = (), wait_s: float = 2 * CALL_S) -> None:
        """Give every engine without a call its next one, then wait a moment for answers."""
        import ray

        self._share_out()
        engines = [engine for engine in self.engines if engine not in apart_from]
        waiting = {engine.reference: engine for engine in engines if engine.reference is not None}
        if waiting:
            ray.wait(list(waiting), num_returns=1, timeout=wait_s)
            for reference in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                self.take(waiting[reference])
        else:
            time.sleep(min(wait_s, CALL_S))
        for engine in engines:
            if reason := engine.hangs():
                self.replace(engine, f"{reason} ({engine.call})")

    def _share_out(self) -> None:
        new: dict[int, list[Request]] = {}
        current = {engine.number: engine for engine in self.engines if engine.edition == self.edition.number}
        while self.queue:
            number = least_loaded({n: engine.work for n, engine in current.items()}, self._room)
            if number is None or current[number].reference is not None:
                break
            group = self.queue.pop()
            current[number].unfinished.update({one.key: one for one in group})
            new.setdefault(number, []).extend(group)
        for number, engine in current.items():
            if engine.reference is None and engine.unfinished:
                engine.advance(new.get(number, ()), CALL_S)

    def take(self, engine: PooledEngine) -> None:
        """Take over the answer, or the error, of an engine whose call has ended."""
        import ray

        try:
            answer = ray.get(engine.reference)
        except Exception as error:
            self.replace(engine, f"failed ({engine.call}): {_first_line(error)}")
            return
        engine.answered(answer)
        if isinstance(answer, Advance):
            for key, response in answer.finished:
                self.queue.answer(key, response)
                self._failures = 0
        elif isinstance(answer, Confirmation | Refusal):
            self._loaded(engine, answer)

    def _loaded(self, engine: PooledEngine, answer: Confirmation | Refusal) -> None:
        edition = engine.loading
        assert edition is not None, "nothing else is answered like this"
        if isinstance(answer, Refusal) and answer.loadable:
            # it may have been another's fault, and the next stream makes it whole
            engine.edition = _NOTHING_USABLE
            self._failed(f"engine {engine.number} did not get its weights: {answer.reason}", WeightHandoverError)
        elif answer != Confirmation(edition.version, edition.checksums):
            given = f"hand-over {edition.version} (checksum {', '.join(edition.checksums)})"
            self.replace(engine, f"did not get the weights of {given}: {answer}")
        else:
            engine.edition = edition.number

    def replace(self, engine: PooledEngine, reason: str) -> None:
        """Kill an engine, start it again and have its requests repeated; an error after too many failures in a row."""
        where = f"engine {engine.number}"
        self._failed(f"{where} {reason}", WeightHandoverError if engine.call == "load" else RolloutError)
        self.replaced += 1
        left = engine.kill()
        self.queue.put_back(left)
        self._on_event(f"{where} {reason}; it is started again, {len(left)} requests are repeated")
        engine.start()

    def _failed(self, what: str, kind: type[Exception]) -> None:
        self._failures += 1
        if self._failures > _FAILURES_IN_A_ROW * len(self.engines):
            raise kind(f"{what}; {self._failures} failures in a row, giving up")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A task's error prints its remote traceback; what happened stands in its last line.
    return f"{type(error).__name__}: {(lines[-1] if 'ray::' in str(error) else lines[0])[:300] if lines else ''}"
