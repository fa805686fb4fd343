"""What the trainer and the rest of this room know about an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError
from megatron_rlpr.weights.receiver import Confirmation

ProgressCallback = Callable[[int, int, int], None]
"""Called as (tokens generated so far, requests finished, requests in all) while an engine generates."""


class RolloutError(RuntimeError):
    """Generation failed; the message names the rank and the cause."""


@dataclass(frozen=True)
class GenerationRequest:
    """One response to sample.

    prompt_token_ids: templated prompt, no padding.
    seed: of this request alone; the same engine weights, requests and seeds give the same tokens.
    label: how error messages call the prompt, e.g. "prompt 17".
    """

    prompt_token_ids: tuple[int, ...]
    seed: int
    label: str = field(default="", compare=False)


@dataclass(frozen=True)
class SamplingSettings:
    """How every request of one call is sampled.

    temperature: 0 is greedy. top_p: nucleus threshold. top_k: -1 for all tokens. max_tokens: most new tokens of a
    response.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sampling temperature is {self.temperature}; use 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling top_p is {self.top_p}; use a number above 0 and up to 1")
        if self.top_k != -1 and self.top_k < 1:
            raise UserError(f"sampling top_k is {self.top_k}; use -1 (all tokens) or at least 1")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens of a response is {self.max_tokens}; use at least 1")


class RolloutEngine(Protocol):
    """An engine that holds one copy of the policy (or one shard of it, with its tensor-parallel peers)."""

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engine its weights; 0 = the initial weights."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[Response]:
        """One response per request, in request order."""

    def check_weights(self, manifest: Mapping[str, tuple[int, ...]]) -> None:
        """Raise WeightHandoverError unless the announced names and shapes are exactly the engine's."""

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> Confirmation:
        """Replace all weights by a stream of full, HF-named tensors that was announced by its manifest.

        A tensor's storage must stay as it is until the stream ends: engines fuse q, k, v and keep parts until the
        last one has come. Raises WeightHandoverError; the engine then refuses to generate until a good update.
        """

    def rebuild(self) -> None:
        """Start anew from the model folder, at version 0; what was in flight is given up. Collective, as the first
        start."""


class Rollouts(Protocol):
    """Where the trainer gets its rollouts from: engines, or a store."""

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engines their weights."""

    @property
    def engines_replaced(self) -> int:
        """Engines that died, hung or failed and were made anew so far, as far as this rank knows; the first rank knows
        of all."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        step: int,
        run_seed: int,
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order; the same on every rank."""

    def update_weights(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> Confirmation | None:
        """Hand new weights to every engine (see `weights.handover.WeightReceiver`)."""

    def rebuild_engines(self) -> None:
        """Make the engines anew after a hand-over that failed. Collective over all ranks."""
