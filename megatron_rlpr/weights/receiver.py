"""What a hand-over asks of whoever takes the weights, wherever the engines are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from megatron_rlpr.weights.engine_slices import WHOLE, EngineRank


class WeightHandoverError(RuntimeError):
    """Weights offered to an engine are incomplete, unknown or of the wrong shape, or their stream broke."""


@dataclass(frozen=True)
class Announcement:
    """What a hand-over will bring. manifest: name -> shape of every tensor. version: the number of the hand-over.

    engine: the rank of an engine whose slices of these tensors come; by default the whole tensors.
    """

    manifest: Mapping[str, tuple[int, ...]]
    version: int
    engine: EngineRank = WHOLE


@dataclass(frozen=True)
class Sent:
    """How weights left for engines elsewhere. nbytes: to the worker that got most. density: the share of the weights
    that changed; 1: they went whole, without a look at the last ones."""

    nbytes: int
    density: float


@dataclass(frozen=True)
class Confirmation:
    """What engines say they hold.

    checksums: of the tensors that reached them (`weights.checksum`), for each of an engine's ranks that this speaks of;
    one, if all have got whole tensors. sent: how these left, where only changes do (`weights.delta`); no part of what
    is confirmed.
    """

    version: int
    checksums: tuple[str, ...]
    sent: Sent | None = field(default=None, compare=False)

    def says(self, version: int, engine: EngineRank, checksum: str) -> bool:
        """Whether that rank of the engines holds the hand-over whose tensors have this checksum."""
        return (version, checksum) == (self.version, self.checksums[engine.rank % len(self.checksums)])


class WeightReceiver(Protocol):
    """Whatever takes new weights: `rollout.engine.Rollouts`, on every rank."""

    def update_weights(self, announced: Announcement, tensors: Iterable[tuple[str, Tensor]]) -> Confirmation | None:
        """Replace all weights by the announced stream; a tensor's storage stays as it is until the stream ends.

        Every iteration of `tensors` is collective over all ranks, and begins the stream anew: a receiver may keep them,
        and iterate again until the weights change, for an engine that has lost them. None, on every rank alike, when
        there is no engine: the stream was left alone.
        """

    def rebuild_engines(self) -> None:
        """Make the engines anew after a hand-over that failed. All ranks call it together."""
