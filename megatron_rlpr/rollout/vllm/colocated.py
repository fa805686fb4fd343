"""Rollouts from engines that live in the training processes.

Every rank, or every tensor_parallel_size consecutive ranks, holds one engine. Whole prompts are dealt to the engines
(`dealing`), so that the n responses of a prompt share its key/value blocks, and all groups come back to all ranks. A
prompt's texts stay with the rank whose engine answered it; ranks that share an engine own its prompts in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from megatron_rlpr.rollout.engine import ProgressCallback
from megatron_rlpr.rollout.owned import share_groups
from megatron_rlpr.rollout.requests import GenerationRequest, RolloutRequest, SamplingSettings, group_requests
from megatron_rlpr.rollout.vllm.dealing import STEPS_PER_ROUND, Deal
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.decisions import gather_or_raise, host_group
from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.types import Response, RolloutGroup
from megatron_rlpr.weights.receiver import Announcement, Confirmation


class ColocatedRollouts:
    """The engines of all ranks as one source of rollouts.

    Every method is collective over all ranks. An error on one rank raises on all; the ranks of one tensor-parallel
    engine must fail together, or its peers wait in the engine's own collective until that times out.
    """

    def __init__(self, engine: VllmEngine, clock: Clock | None = None, room: int | None = None) -> None:
        """engine: this rank's; its tensor_parallel_size divides the ranks (config.checks.pure refuses others).

        room: sequences an engine is given at once (`dealing`); None: its whole share in advance.
        clock: gets the phases `sleep`, `wake_weights`, `load` and `wake_cache`, where engines sleep.
        Collective: makes a gloo group over all ranks for ids, log-probs and errors.
        """
        self._engine = engine
        self._clock = clock or Clock()
        self._room = room
        tensor_parallel_size = engine.settings.tensor_parallel_size
        self._group = host_group()
        self._shares = Shares(self._group)
        self._rank: int = self._shares.rank
        self._tensor_parallel_size = tensor_parallel_size
        self._number_of_engines = self._shares.size // tensor_parallel_size
        self.device_in_use_gb = 0.0
        """In use on this rank's GPU when its engine last fell asleep: what grows from step to step is lost."""
        self.engines_replaced = 0
        """Engines started anew so far, on all ranks together."""

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engines their weights; 0 = the initial weights."""
        return self._engine.weight_version

    def generate(self, asked: RolloutRequest, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order, on every rank; the texts with their owners (`owned`). All
        ranks ask for the same.

        on_progress sees this rank's own engine.
        """
        requests = group_requests(asked)
        sizes = [len(prompt.token_ids) + asked.sampling.max_tokens for prompt in asked.prompts]
        deal = Deal(sizes, asked.n, self._number_of_engines, self._room)
        mine: dict[int, Response] = {}
        owners = [0] * len(requests)
        dealt, left = [0] * self._number_of_engines, len(requests) * asked.n
        progress = _Progress(on_progress)
        try:
            while left:
                given = deal.give()
                for engine, prompts in enumerate(given):
                    for prompt in prompts:
                        place = dealt[engine] % self._tensor_parallel_size
                        owners[prompt] = engine * self._tensor_parallel_size + place
                        dealt[engine] += 1
                prompts = given[self._rank // self._tensor_parallel_size]
                new = {prompt * asked.n + sample: r for prompt in prompts for sample, r in enumerate(requests[prompt])}
                progress.begin(len(new))
                steps = None if deal.all_dealt else STEPS_PER_ROUND
                outcomes = self._shares.gather(
                    partial(self._work, new, mine, asked.sampling, progress, steps), "generation"
                )
                for engine, (finished, written) in enumerate(outcomes[:: self._tensor_parallel_size]):
                    deal.took(engine, finished.tolist(), int(written[0]))
                    left -= len(finished)
        except BaseException:
            self._engine.abort()
            raise
        return share_groups(self._shares, asked, owners, mine)

    def _work(
        self,
        new: dict[int, GenerationRequest],
        mine: dict[int, Response],
        sampling: SamplingSettings,
        progress: _Progress,
        steps: int | None,
    ) -> list[Array]:
        """This rank's part of a round: the requests that its engine finished, whose responses join `mine`, and the
        tokens of what it goes on with."""
        finished = self._engine.work(new, sampling, progress.report, steps)
        progress.end(finished.values())
        mine |= finished
        return [np.array(list(finished), dtype=np.int32), np.array([self._engine.in_flight[1]], dtype=np.int32)]

    def update_weights(self, announced: Announcement, tensors: Iterable[tuple[str, torch.Tensor]]) -> Confirmation:
        """Hand the same HF-named weights to every engine; each rank passes its own view of the stream, or
        the slices that its rank of an engine holds.

        The manifest is checked on all ranks before any rank takes the first tensor. Engines that sleep take memory for
        the weights before, and for their cache when the stream has ended and its buckets are free. Returns what this
        rank's engine confirms.
        """
        gather_or_raise(lambda: self._engine.check_weights(announced), self._group, "the weight hand-over")
        self._change(self._engine.wake_weights, "wake_weights")
        with self._clock.phase("load"):
            confirmed = gather_or_raise(
                lambda: self._engine.update_weights(announced, tensors), self._group, "the weight hand-over"
            )
        self._change(self._engine.wake_cache, "wake_cache")
        return confirmed[self._rank]

    def why_whole(self) -> str:
        """Why the ranks of an engine cannot take slices of their own, the first reason of all; empty: they can."""
        rank = self._rank % self._tensor_parallel_size
        reasons = gather_or_raise(lambda: self._engine.why_whole(rank), self._group, "a look at the engines")
        return next(filter(None, reasons), "")

    @property
    def asleep(self) -> bool:
        """Whether this rank's engine, and so every one, has given its memory up."""
        return self._engine.asleep

    def sleep(self) -> None:
        """Have every engine give up weights and cache until the next hand-over, where engines sleep at all."""
        if not self.asleep:
            self._change(self._engine.sleep, "sleep")
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info()
                self.device_in_use_gb = (total - free) / 1e9

    def _change(self, change: Callable[[], None], phase: str) -> None:
        """Change the engines' memory together, and so that a rank that fails is known to all."""
        if self._engine.settings.sleep:
            with self._clock.phase(phase):
                gather_or_raise(change, self._group, phase.replace("_", " "))

    def rebuild_engines(self) -> None:
        """Start every engine anew; it has no usable weights before the next hand-over."""
        self.engines_replaced += self._number_of_engines
        gather_or_raise(self._engine.rebuild, self._group, "the new start of the engines")


class _Progress:
    """Adds up the rounds of one call for a callback that is told of all."""

    def __init__(self, on_progress: ProgressCallback | None) -> None:
        self._on_progress = on_progress
        self._begun = self._done = self._tokens = 0

    def begin(self, requests: int) -> None:
        """So many requests more."""
        self._begun += requests

    def report(self, tokens: int, done: int) -> None:
        """Of this round: tokens written, those in flight included, and requests finished."""
        if self._on_progress is not None:
            self._on_progress(self._tokens + tokens, self._done + done, self._begun)

    def end(self, finished: Iterable[Response]) -> None:
        """The round is over with these."""
        for response in finished:
            self._done += 1
            self._tokens += len(response.token_ids)
