"""A pool of vLLM engines in Ray actors: answers requests, and hands new weights to its engines while they work.

Nobody here keeps a copy of the weights to give out again (with `weights.delta` there is one to compare with). Whoever
needs them waits for the policy's owner to export them once more, which is collective over the trainer's ranks:
`deliver` and `finish` ask for it through a callback, whenever `lacking` names engines, and `supply` has them sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from megatron_rlpr.rollout.engine import EngineSettings, ProgressCallback
from megatron_rlpr.rollout.ray.cluster import check_room
from megatron_rlpr.rollout.ray.engine import Edition, PooledEngine
from megatron_rlpr.rollout.ray.lanes import Engines
from megatron_rlpr.rollout.ray.request_queue import Ticket
from megatron_rlpr.rollout.ray.scheduler import EngineScheduler, EventCallback
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.limits import check_requests, read_model_config
from megatron_rlpr.rollout.vllm.weight_update import check_manifest, required_weights
from megatron_rlpr.system import stop_signals
from megatron_rlpr.types import Response
from megatron_rlpr.weights.receiver import Announcement, Confirmation, Sent
from megatron_rlpr.weights.transports.interface import WeightSource
from megatron_rlpr.weights.transports.lane import LaneReport, Takers


class EnginePool:
    """Lives on the first rank. Thread-safe: one thread may `finish` a ticket while another delivers weights."""

    def __init__(
        self,
        engines: int,
        settings: EngineSettings,
        timeout_s: float,
        on_event: EventCallback,
    ) -> None:
        """Start `engines` engines and wait for all. Ray is connected. timeout_s: `Silence` of an engine that hangs.

        UserError when the cluster is too small.
        """
        check_room(engines, settings)
        self._required, self._tied_head = required_weights(settings.model_path)
        self._max_model_len = settings.max_model_len
        self._vocab_size = read_model_config(settings.model_path).vocab_size
        self._workers = settings.tensor_parallel_size
        self._sent: Sent | None = None
        """How the last export that reached an engine left."""
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
        return Confirmation(edition.version, edition.checksums, self._sent)

    def why_whole(self) -> str:
        """Why the workers of an engine cannot take slices of their own; empty: they can."""
        whereabouts = [engine.whereabouts for engine in self._scheduler.engines]
        return next((where.why_whole for where in whereabouts if where is not None and where.why_whole), "")

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

    def supply(self, send: Callable[[Engines], list[LaneReport]]) -> None:
        """Have the current weights sent to all that lack them, while the others go on; returns when everything is sent.

        send: exports over the lanes, also where nobody lacks any. WeightHandoverError when these are not the weights
        that were handed over.
        """
        with self._lock:
            taking, edition = self.lacking, self._scheduler.edition
            names, held = tuple(engine.name for engine in taking), tuple(engine.edition for engine in taking)
            hosts = tuple(engine.whereabouts.host for engine in taking if engine.whereabouts)

            def load(place: int, source: WeightSource) -> None:
                taking[place].load(edition, source)

            try:
                takers = Takers(edition.number, self._workers, names, hosts, held)
                reports = send(Engines(takers, load, lambda: self._ended(taking)))
            finally:
                for engine in taking:
                    engine.has_time_again()
            if not reports:
                return
            edition.sent(tuple(report.checksum for report in reports))
            broken = [report.broke for report in reports if report.broke]
            if broken:
                self._on_event(f"hand-over {edition.version} broke off and is repeated: {broken[0]}")
                return
            lost = {place: reason for report in reports for place, reason in report.lost.items()}
            if len(lost) < len(taking):
                self._sent = _of_all(reports)
            for place, reason in lost.items():
                if taking[place].has_answered:  # it can say itself what happened
                    self._scheduler.take(taking[place])
                else:
                    self._scheduler.replace(taking[place], reason)

    def _ended(self, taking: Sequence[PooledEngine]) -> list[int]:
        """While weights are sent: serve the other engines; the places of those whose call has ended too early."""
        self._scheduler.turn(apart_from=taking, wait_s=0)
        for engine in taking:
            engine.has_time_again()
        return [place for place, engine in enumerate(taking) if engine.has_answered]


def _of_all(reports: Sequence[LaneReport]) -> Sent | None:
    """The most that a worker got, and what changed on the whole: lanes carry about as much each."""
    sent = [report.sent for report in reports if report.sent is not None]
    return Sent(max(s.nbytes for s in sent), sum(s.density for s in sent) / len(sent)) if sent else None


class _TurnLock:
    """Waiters get in before a holder that asks for it again: else a loop of turns could keep the lock for ever."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()
