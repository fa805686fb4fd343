"""A pool of vLLM engines in Ray actors: shares out requests, replaces engines that die or hang, hands over weights.

Every engine has at most one call outstanding, and works only inside a call: `advance` takes new requests in, decodes for
a fraction of a second and returns what is finished. That makes the pool a plain loop (`_turn`) over answers, with three
rules. An engine without an answer in time, or with an error, is killed and started again, and its unfinished requests go
back to the front of the queue; they carry their own seeds, so whoever repeats them samples the same. An engine whose
weights are not the current ones gets those before anything else. All others get requests by outstanding tokens.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from megatron_rlpr.rollout.balancing import least_loaded
from megatron_rlpr.rollout.engine import GenerationRequest, ProgressCallback, RolloutError, SamplingSettings
from megatron_rlpr.rollout.engine_limits import check_requests, read_model_config
from megatron_rlpr.rollout.ray_actor import EngineSettings, Progress, Request
from megatron_rlpr.rollout.ray_engine import EngineResources, PooledEngine
from megatron_rlpr.rollout.ray_weights import StoredWeights, store_weights
from megatron_rlpr.rollout.weight_update import check_manifest, required_weights
from megatron_rlpr.types import Response, UserError
from megatron_rlpr.weights.receiver import Confirmation, WeightHandoverError

CALL_S = 0.25
"""How long an engine decodes per call: long against the call's own millisecond, short against a step."""
_FAILURES_IN_A_ROW = 3
"""So many failures per engine with nothing finished in between are not an accident."""


class Ticket:
    """A batch of requests that the pool is working on."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)
        self.responses: dict[str, Response] = {}

    @property
    def done(self) -> bool:
        return len(self.responses) == len(self.keys)


class TurnLock:
    """A lock whose waiters get in before a holder that asks for it again: without, a loop of turns could keep it for ever."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()


class EnginePool:
    """Lives on the trainer's first rank. Thread-safe: one thread may `work` on a ticket while another updates the weights."""

    def __init__(
        self,
        engines: int,
        settings: EngineSettings,
        resources: EngineResources,
        *,
        timeout_s: float,
        bucket_nbytes: int,
        on_event: Callable[[str], None],
    ) -> None:
        """Start `engines` engines and wait for all. Ray is connected. timeout_s: silence after which an engine hangs.

        on_event: told in one line about every replacement. UserError when the cluster is too small.
        """
        _check_resources(engines, resources)
        self._required, self._tied_head = required_weights(settings.model_path)
        self._room = settings.max_num_seqs
        self._max_model_len = settings.max_model_len
        self._vocab_size = read_model_config(settings.model_path).vocab_size
        self._bucket_nbytes = bucket_nbytes
        self._timeout_s = timeout_s
        self._on_event = on_event
        self._lock = TurnLock()
        self._queue: deque[list[Request]] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._weights: StoredWeights | None = None
        self._version = 0
        self._made = 0
        self._failures = 0
        self.replaced = 0
        """Engines replaced so far."""
        self._engines = [PooledEngine(number, settings, resources, timeout_s) for number in range(engines)]
        while any(engine.version is None for engine in self._engines):
            self._turn()

    @property
    def weight_version(self) -> int:
        """The last hand-over; 0: the model folder's weights."""
        return self._version

    @property
    def processes(self) -> list[int]:
        """Process ids of the started engines, each on its own node."""
        return [engine.whereabouts.pid for engine in self._engines if engine.whereabouts is not None]

    def begin(self, groups: Iterable[Sequence[GenerationRequest]], sampling: SamplingSettings) -> Ticket:
        """Queue the requests of every prompt; they are worked on while somebody waits for a ticket.

        UserError for a request that no engine can serve; nothing is queued then.
        """
        groups = [list(requests) for requests in groups]
        flat = [request for requests in groups for request in requests]
        check_requests(flat, sampling.max_tokens, self._max_model_len, self._vocab_size)
        with self._lock:
            queued = []
            for requests in groups:
                queued.append([Request(str(self._made + number), request, sampling) for number, request in enumerate(requests)])
                self._made += len(requests)
            ticket = Ticket([one.key for group in queued for one in group])
            self._tickets.update(dict.fromkeys(ticket.keys, ticket))
            self._queue.extend(queued)
        return ticket

    def finish(self, ticket: Ticket, on_progress: ProgressCallback | None = None) -> list[Response]:
        """Work until the ticket's requests are answered; the responses in request order."""
        while not ticket.done:
            with self._lock:
                self._turn()
                written = sum(engine.tokens_in_flight for engine in self._engines)
            if on_progress is not None:
                finished = sum(len(response.token_ids) for response in ticket.responses.values())
                on_progress(finished + written, len(ticket.responses), len(ticket.keys))
        return [ticket.responses[key] for key in ticket.keys]

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> Confirmation:
        """Give every started engine new weights; requests in flight pause, survive and go on with the new ones.

        An engine that is just starting, or fails with this, gets them when it has started. WeightHandoverError for a
        manifest that does not fit the model, before anything is taken.
        """
        check_manifest(manifest, self._required, self._tied_head)
        with self._lock:
            self._weights = None  # frees the last hand-over's buckets before the new ones come
            self._weights = store_weights(manifest, tensors, version, self._bucket_nbytes)
            self._version = version
            while not self._updated:
                self._turn(decode=False)
            return Confirmation(version, self._weights.checksum)

    @property
    def _updated(self) -> bool:
        started = [engine for engine in self._engines if engine.version is not None]
        return bool(started) and all(engine.version == self._version for engine in started)

    def _turn(self, decode: bool = True) -> None:
        """Give every engine without a call its next one, then wait a moment for answers."""
        import ray

        self._load_outdated()
        if decode:
            self._share_out()
        waiting: dict[Any, PooledEngine] = {engine.reference: engine for engine in self._engines if engine.reference is not None}
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=2 * CALL_S) if waiting else ([], [])
        for reference in ready:
            self._take(waiting[reference])
        for engine in self._engines:
            if engine.overdue:
                self._replace(engine, f"gave no answer for {self._timeout_s:g} s ({engine.call})")

    def _load_outdated(self) -> None:
        for engine in self._engines:
            if engine.reference is None and engine.version != self._version and self._weights is not None:
                engine.update(self._weights)

    def _share_out(self) -> None:
        new: dict[int, list[Request]] = {}
        current = {engine.number: engine for engine in self._engines if engine.version == self._version}
        while self._queue:
            number = least_loaded({n: engine.load for n, engine in current.items()}, self._room)
            if number is None or current[number].reference is not None:
                break
            group = self._queue.popleft()
            current[number].unfinished.update({one.key: one for one in group})
            new.setdefault(number, []).extend(group)
        for number, engine in current.items():
            if engine.reference is None and engine.unfinished:
                engine.advance(new.get(number, ()), CALL_S)

    def _take(self, engine: PooledEngine) -> None:
        import ray

        try:
            answer = ray.get(engine.reference)
        except Exception as error:
            self._replace(engine, f"failed ({engine.call}): {_first_line(error)}")
            return
        call = engine.call
        engine.answered(answer)
        if isinstance(answer, Progress):
            for key, response in answer.finished:
                self._tickets.pop(key).responses[key] = response
                self._failures = 0
        elif call == "update" and self._weights is not None:
            if answer != self._weights.checksum:
                self._replace(engine, f"got weights with checksum {answer}, {self._weights.checksum} were sent")
            else:
                engine.version = self._weights.version

    def _replace(self, engine: PooledEngine, reason: str) -> None:
        self._failures += 1
        self.replaced += 1
        where = f"engine {engine.number}"
        if self._failures > _FAILURES_IN_A_ROW * len(self._engines):
            failure = WeightHandoverError if engine.call == "update" else RolloutError
            raise failure(f"{where} {reason}; {self._failures} failures in a row, giving up")
        left = engine.kill()
        if left:
            self._queue.appendleft(left)
        self._on_event(f"{where} {reason}; it is started again, {len(left)} requests are repeated")
        engine.start()


def _check_resources(engines: int, resources: EngineResources) -> None:
    import ray

    there = ray.cluster_resources()
    for name, each, key in (("CPU", resources.cpus, "rollout.cpus_per_engine"), ("GPU", resources.gpus, "rollout.tensor_parallel_size")):
        if engines * each > there.get(name, 0):
            raise UserError(
                f"rollout.engines={engines} with {each} {name}s each ({key}) need {engines * each}, the Ray cluster has "
                f"{there.get(name, 0):g}: use fewer engines, or add nodes"
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A task's error prints its remote traceback; what happened stands in its last line.
    return f"{type(error).__name__}: {(lines[-1] if 'ray::' in str(error) else lines[0])[:300] if lines else ''}"
