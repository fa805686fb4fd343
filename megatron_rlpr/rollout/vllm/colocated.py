"""Rollouts from engines that live in the training processes.

Every rank, or every tensor_parallel_size consecutive ranks, holds one engine. Whole prompts are dealt to the engines,
so that the n responses of a prompt share its key/value blocks, and all groups come back to all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_rlpr.rollout.engine import ProgressCallback, RolloutEngine, SamplingSettings
from megatron_rlpr.rollout.requests import group_requests
from megatron_rlpr.system.agreement import gather_or_raise
from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError
from megatron_rlpr.weights.receiver import Confirmation


class ColocatedRollouts:
    """The engines of all ranks as one source of rollouts.

    Every method is collective over all ranks. An error on one rank raises on all; the ranks of one tensor-parallel
    engine must fail together, or its peers wait in the engine's own collective until that times out.
    """

    def __init__(self, engine: RolloutEngine, tensor_parallel_size: int = 1) -> None:
        """engine: this rank's. Collective: makes a gloo group over all ranks for ids, texts and errors."""
        self._engine = engine
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        world_size, rank = (dist.get_world_size(), dist.get_rank()) if self._group is not None else (1, 0)
        if world_size % tensor_parallel_size:
            raise UserError(
                f"rollout.tensor_parallel_size={tensor_parallel_size} does not divide the {world_size} ranks of this "
                "run; use a divisor"
            )
        self._tensor_parallel_size = tensor_parallel_size
        self._engine_number = rank // tensor_parallel_size
        self._number_of_engines = world_size // tensor_parallel_size
        self._answers = rank % tensor_parallel_size == 0
        self.engines_replaced = 0
        """Engines started anew so far, on all ranks together."""

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engines their weights; 0 = the initial weights."""
        return self._engine.weight_version

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        step: int,
        run_seed: int,
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order, the same list on every rank. All ranks pass the same prompts.

        Seeds come from (run_seed, step, prompt.index, sample). A prompt that occurs again in the call goes on counting
        its samples, so it gets other responses. on_progress sees this rank's own engine.
        """
        requests = group_requests(prompts, n, step, run_seed)
        mine = range(self._engine_number, len(prompts), self._number_of_engines)

        def work() -> list[Response]:
            responses = self._engine.generate([r for p in mine for r in requests[p]], sampling, on_progress)
            return responses if self._answers else []

        results = gather_or_raise(work, self._group, "generation")
        per_engine = [iter(responses) for responses in results[:: self._tensor_parallel_size]]
        return [
            RolloutGroup(prompt, tuple(next(per_engine[number % self._number_of_engines]) for _ in range(n)))
            for number, prompt in enumerate(prompts)
        ]

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> Confirmation:
        """Hand the same full, HF-named weights to every engine; each rank passes its own view of the stream.

        The manifest is checked on all ranks before any rank takes the first tensor. Returns what this rank's engine
        confirms.
        """
        gather_or_raise(lambda: self._engine.check_weights(manifest), self._group, "the weight hand-over")
        confirmed = gather_or_raise(
            lambda: self._engine.update_weights(manifest, tensors, version), self._group, "the weight hand-over"
        )
        return confirmed[dist.get_rank() if self._group is not None else 0]

    def rebuild_engines(self) -> None:
        """Start every engine anew; it has no usable weights before the next hand-over."""
        self.engines_replaced += self._number_of_engines
        gather_or_raise(self._engine.rebuild, self._group, "the new start of the engines")
