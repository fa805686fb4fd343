"""Rollouts from a pool of engines in Ray: the first rank talks to the pool, all ranks get the same groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist

from megatron_rlpr.rollout.agreement import gather_or_raise
from megatron_rlpr.rollout.engine import GenerationRequest, ProgressCallback, RolloutError, SamplingSettings
from megatron_rlpr.rollout.ray_pool import EnginePool, Ticket
from megatron_rlpr.rollout.requests import group_requests
from megatron_rlpr.types import Prompt, Response, RolloutGroup
from megatron_rlpr.weights.receiver import Confirmation


class RayRollouts:
    """Every method is collective over all ranks; an error on the first rank raises on all."""

    def __init__(self, make_pool: Callable[[], EnginePool]) -> None:
        """make_pool: called on the first rank alone. Collective: makes a gloo group for groups and errors."""
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._pool: EnginePool | None = None
        self._version = 0
        self._begun: tuple[tuple[Prompt, ...], int] | None = None
        self._ticket: Ticket | None = None
        self._worker: Future[list[Response]] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        first = self._group is None or dist.get_rank() == 0

        def start() -> None:
            self._pool = make_pool() if first else None

        gather_or_raise(start, self._group, "the start of the engines")

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engines their weights; 0 = the initial weights."""
        return self._version

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        step: int,
        run_seed: int,
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order, the same list on every rank, with the seeds of colocated rollouts.

        on_progress is called on the first rank and sees all engines.
        """
        requests = group_requests(prompts, n, step, run_seed)

        def work() -> list[Response]:
            if self._pool is None:
                return []
            return self._pool.finish(self._pool.begin(requests, sampling), on_progress)

        return _groups(prompts, n, gather_or_raise(work, self._group, "generation")[0])

    def begin(self, prompts: Sequence[Prompt], n: int, step: int, run_seed: int, sampling: SamplingSettings) -> None:
        """Start to generate in a thread of the first rank, whatever else the ranks do; `collect` waits for the groups."""
        if self._begun is not None:
            raise RolloutError("rollouts were begun that nobody has collected")
        requests = group_requests(prompts, n, step, run_seed)
        gather_or_raise(lambda: self._start(requests, sampling), self._group, "generation")
        self._begun = (tuple(prompts), n)

    def collect(self, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """What `generate` would have returned for the arguments of the last `begin`, but for the weights that wrote it."""
        if self._begun is None:
            raise RolloutError("no rollouts were begun")
        (prompts, n), self._begun = self._begun, None

        def work() -> list[Response]:
            if self._pool is None or self._ticket is None or self._worker is None:
                return []
            responses = self._pool.finish(self._ticket, on_progress)
            self._worker.result()
            return responses

        return _groups(prompts, n, gather_or_raise(work, self._group, "generation")[0])

    def _start(self, requests: Sequence[Sequence[GenerationRequest]], sampling: SamplingSettings) -> None:
        if self._pool is not None:
            self._ticket = self._pool.begin(requests, sampling)
            self._worker = self._threads.submit(self._pool.finish, self._ticket)

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> Confirmation:
        """Hand new weights to every engine, from the first rank's view of the stream; the other ranks consume theirs.

        Returns, on every rank, what all engines of the pool have confirmed.
        """

        stream = iter(tensors)

        def work() -> Confirmation | None:
            try:
                return None if self._pool is None else self._pool.update_weights(manifest, stream, version)
            finally:
                for _ in stream:  # its gathers are collective: a rank that leaves off would leave the others waiting
                    continue

        confirmation = gather_or_raise(work, self._group, "the weight hand-over")[0]
        assert confirmation is not None, "the first rank has the pool"
        self._version = version
        return confirmation

    def rebuild_engines(self) -> None:
        """Nothing to do: the pool replaces an engine by itself, and gives up after several that failed in a row."""


def _groups(prompts: Sequence[Prompt], n: int, responses: Sequence[Response]) -> list[RolloutGroup]:
    each = iter(responses)
    return [RolloutGroup(prompt, tuple(next(each) for _ in range(n))) for prompt in prompts]
