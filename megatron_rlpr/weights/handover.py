"""Give the engines the policy's current weights, announced first and checksummed as they flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.export import WeightExporter


class WeightReceiver(Protocol):
    """Whatever takes new weights: `rollout.Rollouts`, on every rank."""

    def update_weights(self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace all weights by the announced stream; a tensor's storage stays as it is until the stream ends."""


@dataclass(frozen=True)
class HandOverReport:
    """What one hand-over exported on this rank (0 bytes when the receiver wants no weights).

    checksum: see `weights.checksum`; the same on every rank, and for the same weights in any layout.
    """

    version: int
    nbytes: int
    checksum: str


class HandOver:
    """Sends the exporter's stream to the rollouts. All ranks call `send` together."""

    def __init__(self, exporter: WeightExporter, rollouts: WeightReceiver) -> None:
        self._exporter = exporter
        self._rollouts = rollouts

    def send(self, version: int) -> HandOverReport:
        """Replace the engines' weights; afterwards their responses carry `version`.

        A receiver that took a part of the stream, or raised, gets the rest drained: the other ranks' gathers wait for
        this rank. One that takes nothing, on every rank alike, costs nothing.
        """
        stream = ChecksummedStream(self._exporter.stream())
        source = iter(stream)
        try:
            self._rollouts.update_weights(self._exporter.manifest(), source, version)
        except BaseException:
            _drain(source)
            raise
        if stream.nbytes:
            _drain(source)
        return HandOverReport(version, stream.nbytes, stream.checksum)


def _drain(source: Iterator[tuple[str, torch.Tensor]]) -> None:
    for _ in source:
        continue
