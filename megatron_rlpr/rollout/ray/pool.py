"""A pool of vLLM engines in Ray actors: shares out requests, replaces engines that die or hang, hands over weights.

Every engine has at most one call outstanding, and works only inside a call: `advance` takes new requests in, decodes
for a fraction of a second and returns what is finished. That makes the pool a plain loop (`_turn`) over answers, with
three rules. An engine without an answer in time, or with an error, is killed and started again, and its unfinished
requests go back to the front of the queue; they carry their own seeds, so whoever repeats them samples the same. An
engine whose weights are not the current ones gets no work until `supply` has streamed them to it. All others get
requests by outstanding tokens.

Nobody here keeps a copy of the weights. Whoever needs them waits for the policy's owner to export them once more, which
is collective over the trainer's ranks: `deliver` and `finish` ask for it through a callback, whenever `lacking` names
engines.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from megatron_rlpr.rollout.engine import EngineSettings, ProgressCallback, RolloutError
from megatron_rlpr.rollout.ray.actor import Advance, Refusal, Request
from megatron_rlpr.rollout.ray.balancing import least_loaded
from megatron_rlpr.rollout.ray.cluster import check_room
from megatron_rlpr.rollout.ray.engine import Edition, PooledEngine
from megatron_rlpr.rollout.ray.turn_lock import TurnLock
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.limits import check_requests, read_model_config
from megatron_rlpr.rollout.vllm.weight_update import check_manifest, required_weights
from megatron_rlpr.types import Response
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightTransportError

CALL_S = 0.25
"""How long an engine decodes per call: long against the call's own millisecond, short against a step."""
_FAILURES_IN_A_ROW = 3
"""So many failures per engine with nothing finished in between are not an accident."""
_NOTHING_USABLE = -1
"""In place of the number of an edition."""


class Ticket:
    """A batch of requests that the pool is working on."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)
        self.responses: dict[str, Response] = {}

    @property
    def done(self) -> bool:
        return len(self.responses) == len(self.keys)


class EnginePool:
    """Lives on the trainer's first rank. Thread-safe: one thread may `finish` a ticket while another delivers
    weights."""

    def __init__(
        self,
        engines: int,
        settings: EngineSettings,
        *,
        timeout_s: float,
        transports: Transports,
        on_event: Callable[[str], None],
    ) -> None:
        """Start `engines` engines and wait for all. Ray is connected. timeout_s: silence after which an engine hangs.

        on_event: told in one line about every replacement. UserError when the cluster is too small.
        """
        check_room(engines, settings)
        self._required, self._tied_head = required_weights(settings.model_path)
        self._room = settings.max_num_seqs
        self._max_model_len = settings.max_model_len
        self._vocab_size = read_model_config(settings.model_path).vocab_size
        self._workers = settings.tensor_parallel_size
        self._transports = transports
        self._timeout_s = timeout_s
        self._on_event = on_event
        self._lock = TurnLock()
        self._queue: deque[list[Request]] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._current = Edition(0, Announcement(self._required, 0))
        self._made = 0
        self._failures = 0
        self.replaced = 0
        """Engines replaced so far."""
        self._engines = [PooledEngine(number, settings, timeout_s) for number in range(engines)]
        while any(engine.edition is None for engine in self._engines):
            self._turn()

    @property
    def processes(self) -> list[int]:
        """Process ids of the started engines, each on its own node."""
        return [engine.whereabouts.pids[0] for engine in self._engines if engine.whereabouts is not None]

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
                queued.append(
                    [Request(str(self._made + number), request, sampling) for number, request in enumerate(requests)]
                )
                self._made += len(requests)
            ticket = Ticket([one.key for group in queued for one in group])
            self._tickets.update(dict.fromkeys(ticket.keys, ticket))
            self._queue.extend(queued)
        return ticket

    def finish(
        self, ticket: Ticket, on_progress: ProgressCallback | None = None, ask: Callable[[], None] | None = None
    ) -> list[Response]:
        """Work until the ticket's requests are answered; the responses in request order.

        ask: has the current weights exported to `supply`. Without it, engines that lack them wait, and so do the
        requests if there are no others.
        """
        while not ticket.done:
            if ask is not None and self.lacking:
                ask()
            with self._lock:
                self._turn()
                written = sum(engine.tokens_in_flight for engine in self._engines)
            if on_progress is not None:
                finished = sum(len(response.token_ids) for response in ticket.responses.values())
                on_progress(finished + written, len(ticket.responses), len(ticket.keys))
        return [ticket.responses[key] for key in ticket.keys]

    def deliver(self, announced: Announcement, ask: Callable[[], None]) -> Confirmation:
        """Give every started engine new weights; requests in flight pause, survive and go on with the new ones.

        ask: has the weights exported to `supply`; called again for engines that did not get them whole. An engine that
        is just starting gets them later, when `finish` asks. WeightHandoverError for a manifest that does not fit the
        model, before anything is exported, and after failures in a row.
        """
        check_manifest(announced.manifest, self._required, self._tied_head)
        with self._lock:
            self._current = Edition(self._current.number + 1, announced)
        while not self._delivered:
            if self.lacking:
                ask()
            with self._lock:
                self._turn()
        assert self._current.checksum is not None, "an engine has confirmed it"
        return Confirmation(announced.version, self._current.checksum)

    @property
    def _delivered(self) -> bool:
        started = [engine for engine in self._engines if engine.edition is not None]
        return bool(started) and all(engine.edition == self._current.number for engine in started)

    @property
    def lacking(self) -> list[PooledEngine]:
        """Started engines without the current weights; none before all of these are free to take them."""
        outdated = [engine for engine in self._engines if engine.edition not in (None, self._current.number)]
        return outdated if all(engine.reference is None for engine in outdated) else []

    def supply(self, tensors: Iterator[NamedTensor], checksum: Callable[[], str]) -> None:
        """Stream the current weights to all that lack them, while the others go on; returns when everything is sent.

        checksum: of what has been taken from `tensors` so far. WeightHandoverError when these are not the weights that
        were handed over.
        """
        with self._lock:
            taking, edition = self.lacking, self._current
            transport = self._transports.reaching(engine.whereabouts.host for engine in taking if engine.whereabouts)
            readers = [f"{engine.name}, worker {worker}" for engine in taking for worker in range(self._workers)]
            if not readers:
                return
            try:
                with transport.sender(readers) as sender:
                    for position, engine in enumerate(taking):
                        engine.load(edition, sender.source(position * self._workers))
                    lost = sender.send(tensors, lambda: self._ended(taking))
            except WeightTransportError as error:
                self._on_event(f"hand-over {edition.announced.version} broke off and is repeated: {error}")
                return
            finally:
                for engine in taking:
                    engine.has_time_again()
            if len(lost) < len(readers):
                self._sent(edition, checksum())
            for position, reason in {reader // self._workers: reason for reader, reason in lost.items()}.items():
                self._give_up(taking[position], reason)

    def _sent(self, edition: Edition, checksum: str) -> None:
        if edition.checksum not in (None, checksum):
            raise WeightHandoverError(
                f"an engine needs the weights of hand-over {edition.announced.version} (checksum {edition.checksum}) "
                f"again, but the policy's are others now ({checksum})"
            )
        edition.checksum = checksum

    def _ended(self, taking: Sequence[PooledEngine]) -> list[int]:
        """While weights are being sent: serve the other engines; the readers of those whose call has ended too
        early."""
        import ray

        self._turn(apart_from=taking, wait_s=0)
        for engine in taking:
            engine.has_time_again()
        ready = set(ray.wait([engine.reference for engine in taking], num_returns=len(taking), timeout=0)[0])
        ended = [position for position, engine in enumerate(taking) if engine.reference in ready]
        return [position * self._workers + worker for position in ended for worker in range(self._workers)]

    def _give_up(self, engine: PooledEngine, reason: str) -> None:
        """Replace an engine that got lost while it took weights, unless it can say itself what happened."""
        import ray

        if ray.wait([engine.reference], timeout=0)[0]:
            self._take(engine)
        else:
            self._replace(engine, reason)

    def _turn(self, apart_from: Sequence[PooledEngine] = (), wait_s: float = 2 * CALL_S) -> None:
        """Give every engine without a call its next one, then wait a moment for answers."""
        import ray

        self._share_out()
        engines = [engine for engine in self._engines if engine not in apart_from]
        waiting: dict[Any, PooledEngine] = {
            engine.reference: engine for engine in engines if engine.reference is not None
        }
        if waiting:
            ray.wait(list(waiting), num_returns=1, timeout=wait_s)
            for reference in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                self._take(waiting[reference])
        else:
            time.sleep(min(wait_s, CALL_S))
        for engine in engines:
            if engine.overdue:
                self._replace(engine, f"gave no answer for {self._timeout_s:g} s ({engine.call})")

    def _share_out(self) -> None:
        new: dict[int, list[Request]] = {}
        current = {engine.number: engine for engine in self._engines if engine.edition == self._current.number}
        while self._queue:
            number = least_loaded({n: engine.work for n, engine in current.items()}, self._room)
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
        engine.answered(answer)
        if isinstance(answer, Advance):
            for key, response in answer.finished:
                self._tickets.pop(key).responses[key] = response
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
        elif answer != Confirmation(edition.announced.version, edition.checksum or ""):
            given = f"hand-over {edition.announced.version} (checksum {edition.checksum})"
            self._replace(engine, f"did not get the weights of {given}: {answer}")
        else:
            engine.edition = edition.number

    def _replace(self, engine: PooledEngine, reason: str) -> None:
        where = f"engine {engine.number}"
        self._failed(f"{where} {reason}", WeightHandoverError if engine.call == "load" else RolloutError)
        self.replaced += 1
        left = engine.kill()
        if left:
            self._queue.appendleft(left)
        self._on_event(f"{where} {reason}; it is started again, {len(left)} requests are repeated")
        engine.start()

    def _failed(self, what: str, kind: type[Exception]) -> None:
        """Count a failure; the one too many is raised."""
        self._failures += 1
        if self._failures > _FAILURES_IN_A_ROW * len(self._engines):
            raise kind(f"{what}; {self._failures} failures in a row, giving up")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A task's error prints its remote traceback; what happened stands in its last line.
    return f"{type(error).__name__}: {(lines[-1] if 'ray::' in str(error) else lines[0])[:300] if lines else ''}"
