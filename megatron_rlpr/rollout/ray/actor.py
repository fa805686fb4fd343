"""One vLLM engine in a Ray actor's process. It works only while it is called: a pause is a call that does not come.

All work is done in one thread; another answers how much processor time that one has used, whatever it is doing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.types import Response
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError
from megatron_rlpr.weights.transports.interface import WeightSource
from megatron_rlpr.weights.transports.shared_memory import this_host

HEARTBEAT = "heartbeat"
"""Ray's name for the thread (concurrency group) that answers beside the one that works."""


@dataclass(frozen=True)
class Whereabouts:
    """Where an engine lives. pids: its process, then those that vLLM started. host: who shares memory with it.

    why_whole: why its workers cannot take slices of the weights of their own; empty: they can.
    """

    node_id: str
    pids: tuple[int, ...]
    host: str
    why_whole: str


@dataclass(frozen=True)
class Request:
    """A request as the pool sends it: its key is unique in the life of the pool."""

    key: str
    request: GenerationRequest
    sampling: SamplingSettings


@dataclass(frozen=True)
class Advance:
    """What one call of `advance` finished, by key, and the tokens written so far for what is unfinished."""

    finished: list[tuple[str, Response]]
    tokens_in_flight: int


@dataclass(frozen=True)
class Refusal:
    """A hand-over that an engine did not get whole. loadable: another one can make it usable again."""

    reason: str
    loadable: bool


class EngineActor:
    """The methods of the remote process. One call at a time, in the order they were made, but for `computed_s`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._clock: int | None = None

    def start(self) -> Whereabouts:
        """Start the engine, in the thread that will do all its work. Before all other calls."""
        import ray

        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        torch.set_num_threads(self._settings.threads)
        self._engine = VllmEngine(self._settings)
        workers = [child.pid for child in psutil.Process().children(recursive=True)]
        node, why_whole = ray.get_runtime_context().get_node_id(), self._engine.why_whole()
        return Whereabouts(node, (os.getpid(), *workers), this_host(), why_whole)

    def computed_s(self) -> float:
        """The heartbeat: processor seconds of the thread that works; call it in HEARTBEAT, a thread of its own."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def advance(self, new: Sequence[Request], seconds: float) -> Advance:
        """Take new requests in and decode for about `seconds` (one step at least), or until nothing is in flight."""
        for one in new:
            self._engine.submit(one.key, one.request, one.sampling)
        finished: list[tuple[str, Response]] = []
        end = time.monotonic() + seconds
        while self._engine.in_flight[0]:
            finished += self._engine.step()
            if time.monotonic() > end:
                break
        return Advance(finished, self._engine.in_flight[1])

    def load(self, announced: Announcement, source: WeightSource) -> Confirmation | Refusal:
        """Load a hand-over, each worker from the source; what is in flight goes on with it."""
        try:
            return self._engine.load(announced, source)
        except WeightHandoverError as error:
            return Refusal(str(error), self._engine.loadable)
