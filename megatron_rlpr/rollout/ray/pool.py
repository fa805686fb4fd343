"""A pool of vLLM engines in Ray actors: answers requests, and hands new weights to its engines while they work.

Nobody here keeps a copy of the weights to give out again (with `weights.delta` there is one to compare with). Whoever
needs them waits for the policy's owner to export them once more, which is collective over the trainer's ranks:
`deliver` and `finish` ask for it through a callback, whenever `lacking` names engines, and `supply` streams them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from megatron_rlpr.rollout.engine import EngineSettings, ProgressCallback
from megatron_rlpr.rollout.ray.cluster import check_room
from megatron_rlpr.rollout.ray.engine import Edition, PooledEngine
from megatron_rlpr.rollout.ray.request_queue import Ticket
from megatron_rlpr.rollout.ray.scheduler import EngineScheduler, EventCallback
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.limits import check_requests, read_model_config
from megatron_rlpr.rollout.vllm.weight_update import check_manifest, required_weights
from megatron_rlpr.system import stop_signals
from megatron_rlpr.types import Response
from megatron_rlpr.weights.receiver import Announcement, Confirmation
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.delta import DeltaSender
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightTransportError


class EnginePool:
    """Lives on the first rank. Thread-safe: one thread may `finish` a ticket while another delivers weights."""

    def __init__(
        self,
        engines: int,
        settings: EngineSettings,
        timeout_s: float,
        transports: Transports,
        on_event: EventCallback,
        delta: bool = False,
    ) -> None:
        """Start `engines` engines and wait for all. Ray is connected. timeout_s: `Silence` of an engine that hangs.
        delta: send engines only what has changed since the weights that they hold (`weights.transports.delta`).

        UserError when the cluster is too small.
        """
        check_room(engines, settings)
        self._required, self._tied_head = required_weights(settings.model_path)
        self._max_model_len = settings.max_model_len
        self._vocab_size = read_model_config(settings.model_path).vocab_size
        self._workers = settings.tensor_parallel_size
        self._transports = transports
        self._delta = DeltaSender() if delta else None
        self._on_event = on_event
        self._lock = _TurnLock()
        self._scheduler = EngineScheduler(engines, settings, timeout_s, on_event)

    @property
    def replaced(self) -> int:
        """Engines replaced so far."""
        return self._scheduler.replaced

    @property
    def processes(self) -> list[int]:
        """Process ids of the started engines, each on its own node."""
        return [engine.whereabouts.pids[0] for engine in self._scheduler.engines if engine.whereabouts is not None]

    def begin(self, groups: Sequence[Sequence[GenerationRequest]], sampling: SamplingSettings) -> Ticket:
        """Queue the requests of every prompt; they are worked on while somebody waits for a ticket.

        UserError for a request that no engine can serve; nothing is queued then.
        """
        flat = [request for requests in groups for request in requests]
        check_requests(flat, sampling.max_tokens, self._max_model_len, self._vocab_size)
        with self._lock:
            return self._scheduler.queue.add(groups, sampling)

    def finish(
        self, ticket: Ticket, on_progress: ProgressCallback | None = None, ask: Callable[[], None] | None = None
    ) -> list[Response]:
        """Work until the ticket's requests are answered; the responses in request order.

        ask: has the current weights exported to `supply`. Without it, engines that lack them wait, and so do the
        requests if there are no others. Raises Stopped when the run was asked to stop.
        """
        while not ticket.done:
            stop_signals.check()
            if ask is not None and self.lacking:
                ask()
            with self._lock:
                self._scheduler.turn()
                written = sum(engine.tokens_in_flight for engine in self._scheduler.engines)
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
            edition = Edition(self._scheduler.edition.number + 1, announced)
            self._scheduler.edition = edition
        while not self.delivered:
            if self.lacking:
                ask()
            with self._lock:
                self._scheduler.turn()
        assert edition.checksum is not None, "an engine has confirmed it"
        sent = None if self._delta is None else self._delta.sent
        return Confirmation(edition.version, edition.checksum, sent)

    @property
    def delivered(self) -> bool:
        """Whether some engines have started and all of them hold the current weights."""
        started = self._scheduler.started
        return bool(started) and all(engine.edition == self._scheduler.edition.number for engine in started)

    @property
    def lacking(self) -> list[PooledEngine]:
        """Started engines without the current weights; none before all of these are free to take them."""
        outdated = self._scheduler.outdated
        return outdated if all(engine.reference is None for engine in outdated) else []

    def supply(self, tensors: Iterator[NamedTensor], checksum: Callable[[], str]) -> None:
        """Stream the current weights to all that lack them, while the others go on; returns when everything is sent.

        checksum: of what has been taken from `tensors` so far. WeightHandoverError when these are not the weights that
        were handed over.
        """
        with self._lock:
            taking, edition = self.lacking, self._scheduler.edition
            transport = self._transports.reaching(engine.whereabouts.host for engine in taking if engine.whereabouts)
            readers = [f"{engine.name}, worker {worker}" for engine in taking for worker in range(self._workers)]
            if not readers:
                return
            held = [engine.edition for engine in taking]
            stream = None if self._delta is None else self._delta.stream(tensors, edition.number, held)
            try:
                with transport.sender(readers) as sender:
                    for position, engine in enumerate(taking):
                        source = sender.source(position * self._workers)
                        engine.load(edition, stream.source(source) if stream else source)
                    lost = sender.send(stream or tensors, lambda: self._ended(taking))
            except WeightTransportError as error:
                self._on_event(f"hand-over {edition.version} broke off and is repeated: {error}")
                return
            finally:
                for engine in taking:
                    engine.has_time_again()
            if len(lost) < len(readers):
                edition.sent(checksum())
            for position, reason in {reader // self._workers: reason for reader, reason in lost.items()}.items():
                if taking[position].has_answered:  # it can say itself what happened
                    self._scheduler.take(taking[position])
                else:
                    self._scheduler.replace(taking[position], reason)

    def _ended(self, taking: Sequence[PooledEngine]) -> list[int]:
        """While weights are sent: serve the other engines; the readers of those whose call has ended too early."""
        self._scheduler.turn(apart_from=taking, wait_s=0)
        for engine in taking:
            engine.has_time_again()
        ended = [position for position, engine in enumerate(taking) if engine.has_answered]
        return [position * self._workers + worker for position in ended for worker in range(self._workers)]


class _TurnLock:
    """Waiters get in before a holder that asks for it again: else a loop of turns could keep the lock for ever."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()
