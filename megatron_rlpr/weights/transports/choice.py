"""Which transport carries a hand-over (`weights.transport`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.interface import WeightTransport
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport, this_host

TransportName = Literal["auto", "shared_memory", "collective"]


class Transports:
    """Both transports of a run; neither takes anything before it is used."""

    def __init__(self, name: TransportName, address: str, bucket_nbytes: int, timeout_s: float) -> None:
        """address: this host's, as other nodes see it. timeout_s: longest silence of a reader."""
        self._name = name
        self._shared_memory = SharedMemoryTransport(bucket_nbytes, timeout_s)
        self._collective = CollectiveTransport(address, bucket_nbytes, timeout_s)

    def reaching(self, hosts: Iterable[str]) -> WeightTransport:
        """For readers on these hosts (what `this_host` is there). UserError when the one asked for cannot reach them.

        auto: shared memory where all are on this host without CUDA, since that goes through the host's memory.
        """
        elsewhere = set(hosts) - {this_host()}
        if self._name == "shared_memory" and elsewhere:
            others = "another host (or in a container or as a user of its own)"
            fix = "use weights.transport=auto or collective"
            raise UserError(f"weights.transport=shared_memory, but an engine runs on {others}: {fix}")
        if self._name == "collective" or elsewhere or (self._name == "auto" and torch.cuda.is_available()):
            return self._collective
        return self._shared_memory
