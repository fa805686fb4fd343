"""Rollouts from a pool of engines in Ray: the first rank talks to the pool, all ranks get the same groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_rlpr.rollout.agreement import gather_or_raise
from megatron_rlpr.rollout.engine import ProgressCallback, SamplingSettings
from megatron_rlpr.rollout.ray_pool import EnginePool
from megatron_rlpr.rollout.requests import group_requests
from megatron_rlpr.types import Prompt, Response, RolloutGroup


class RayRollouts:
    """Every method is collective over all ranks; an error on the first rank raises on all."""

    def __init__(self, make_pool: Callable[[], EnginePool]) -> None:
        """make_pool: called on the first rank alone. Collective: makes a gloo group for groups and errors."""
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._pool: EnginePool | None = None
        self._version = 0
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

        responses = iter(gather_or_raise(work, self._group, "generation")[0])
        return [RolloutGroup(prompt, tuple(next(responses) for _ in range(n))) for prompt in prompts]

    def update_weights(self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Hand new weights to every engine, from the first rank's view of the stream; the other ranks consume theirs."""

        stream = iter(tensors)

        def work() -> None:
            try:
                if self._pool is not None:
                    self._pool.update_weights(manifest, stream, version)
            finally:
                for _ in stream:  # its gathers are collective: a rank that leaves off would leave the others waiting
                    continue

        gather_or_raise(work, self._group, "the weight hand-over")
        self._version = version
