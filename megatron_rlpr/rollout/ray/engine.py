"""One engine of the pool as the trainer sees it: its actor, its one outstanding call, and what it is working on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_rlpr.rollout.balancing import Load, outstanding_tokens
from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray.actor import HEARTBEAT, Advance, EngineActor, Request, Whereabouts
from megatron_rlpr.rollout.ray.cluster import actor_environment, engine_resources
from megatron_rlpr.rollout.ray.heartbeat import Silence
from megatron_rlpr.weights.receiver import Announcement, WeightHandoverError
from megatron_rlpr.weights.transports.interface import WeightSource

Call = Literal["start", "load", "advance"]
START_TIMEOUT_S = 900.0
"""Patience with an engine that starts: it may wait for room, and for the workers that load a large model."""
_HEARTBEATS = 10
"""Asked for within the time after which an engine hangs. A call that ends before the first needs none."""
_LISTENED_S = 1.0
"""Most time that counts between two looks: while nobody looks, nobody can hear."""


@dataclass
class Edition:
    """The weights of one hand-over; every attempt at it is an edition of its own. number: 0 is the model folder's.

    checksums: of what was exported for every lane; empty until it has been.
    """

    number: int
    announced: Announcement
    checksums: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        return self.announced.version

    def sent(self, checksums: tuple[str, ...]) -> None:
        """Note what has been exported to be sent. WeightHandoverError when these are other weights than before."""
        if self.checksums not in ((), checksums):
            raise WeightHandoverError(
                f"an engine needs the weights of hand-over {self.version} (checksum {', '.join(self.checksums)}) "
                f"again, but the policy's are others now ({', '.join(checksums)})"
            )
        self.checksums = checksums


class PooledEngine:
    """Not thread-safe; the pool's lock covers it."""

    def __init__(self, number: int, settings: EngineSettings, timeout_s: float) -> None:
        """Starts the actor; `reference` is ready when it has started. timeout_s: longest `Silence` once it has."""
        self.number = number
        self.edition: int | None = None
        """The number of the edition it holds; None: it has not started."""
        self.loading: Edition | None = None
        """What the last `load` is of."""
        self.unfinished: dict[str, Request] = {}
        self.whereabouts: Whereabouts | None = None
        self.reference: Any | None = None
        """What the outstanding call will answer; None: there is none."""
        self._settings = settings
        self._timeout_s = timeout_s
        self._looked = self._ask_at = 0.0
        """On the clock: when `hangs` last looked, and when it asks for the next heartbeat."""
        self._starts = 0
        self.start()

    def start(self) -> None:
        """A new actor in the place of the old one, if any."""
        import ray

        self.edition = self.loading = self.whereabouts = None
        self.tokens_in_flight = 0
        """Tokens written so far for the unfinished requests."""
        self._starts += 1
        self._heartbeat: Any | None = None
        cpus, gpus = engine_resources(self._settings).values()
        environment = {"env_vars": actor_environment(self._settings.threads, cuda=gpus > 0)}
        actor = ray.remote(concurrency_groups={HEARTBEAT: 1})(EngineActor)
        options = actor.options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env=environment)
        self._actor = options.remote(self._settings)
        self._called("start", self._actor.start.remote(), START_TIMEOUT_S)

    @property
    def name(self) -> str:
        """Of this actor; a new one in its place has another."""
        return f"engine {self.number}, start {self._starts}"

    @property
    def work(self) -> Load:
        """What it has in flight."""
        sizes = [(len(r.request.prompt_token_ids), r.sampling.max_tokens) for r in self.unfinished.values()]
        return Load(len(sizes), outstanding_tokens(sizes, self.tokens_in_flight))

    @property
    def has_answered(self) -> bool:
        """Whether the outstanding call has ended."""
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def hangs(self) -> str:
        """Listen for a heartbeat while a call is outstanding, and ask for the next; why it hangs, empty if not."""
        import ray

        if self.reference is None:
            return ""
        now = time.monotonic()
        self._silence.goes_on(min(now - self._looked, _LISTENED_S))
        self._looked = now
        if self._heartbeat is not None and ray.wait([self._heartbeat], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # it is gone, as the call itself will say
                self._silence.heard(ray.get(self._heartbeat))
            self._heartbeat = None
        if self._heartbeat is None and now > self._ask_at:
            self._heartbeat = self._actor.computed_s.options(concurrency_group=HEARTBEAT).remote()
            self._ask_at = now + self._timeout_s / _HEARTBEATS
        return self._silence.verdict

    def advance(self, new: Sequence[Request], seconds: float) -> None:
        """Send requests and let it decode; `reference` becomes an Advance."""
        self._called("advance", self._actor.advance.remote(list(new), seconds))

    def load(self, edition: Edition, source: WeightSource) -> None:
        """Have its workers read an edition from the source; `reference` becomes a Confirmation or a Refusal."""
        self.loading = edition
        self._called("load", self._actor.load.remote(edition.announced, source))

    def has_time_again(self) -> None:
        """Whoever it waits for has just been heard of: its time to answer begins anew."""
        self._silence = Silence(self._timeout_s)

    def answered(self, answer: Any) -> None:
        """Take over the answer of the outstanding call."""
        if isinstance(answer, Whereabouts):
            self.whereabouts, self.edition = answer, 0
        elif isinstance(answer, Advance):
            self.tokens_in_flight = answer.tokens_in_flight
            for key, _ in answer.finished:
                del self.unfinished[key]
        self.reference = None

    def kill(self) -> list[Request]:
        """End its process, which may be stopped or gone; returns what it left unfinished."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._actor, no_restart=True)
        # Processes that do not run cannot follow Ray's request to end.
        if self.whereabouts is not None and self.whereabouts.node_id == ray.get_runtime_context().get_node_id():
            for pid in self.whereabouts.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        left = list(self.unfinished.values())
        self.unfinished.clear()
        self.reference = None
        return left

    def _called(self, call: Call, reference: Any, limit_s: float | None = None) -> None:
        self.call: Call = call
        self.reference = reference
        self._silence = Silence(limit_s or self._timeout_s)
        self._looked = time.monotonic()
        self._ask_at = self._looked + self._timeout_s / _HEARTBEATS
