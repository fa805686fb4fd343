"""Which of the actor's memory is on the device: all of it while it trains, less while engines generate (actor.offload).

none       nothing ever moves
optimizer  gradient buffers are released, and the optimizer's fp32 shards and Adam moments lie on the host
all        so do the weights; hand-overs read them there, a parameter at a time

`offload` makes room, and whatever needs something brings it back by itself: a step without its gradient buffers would
be a segmentation fault, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.optimizer import MegatronOptimizer

from megatron_rlpr.actor.host_copies import HostCopies, storage_key
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.weights.local_parameters import in_bf16

Offload = Literal["none", "optimizer", "all"]


@dataclass
class Moved:
    """Bytes that went to the host, that came back, and that were released without a copy (gradient buffers)."""

    offloaded: int = 0
    restored: int = 0
    released: int = 0


class ActorMemory:
    """The memory of one policy on this rank. Nothing here is collective."""

    def __init__(
        self,
        offload: Offload,
        chunks: Sequence[torch.nn.Module],
        wrapped: Sequence[torch.nn.Module],
        optimizer: MegatronOptimizer | None,
        clock: Clock,
    ) -> None:
        """chunks: bare; wrapped: the same in Megatron's data-parallel buffers, where there is an optimizer.

        clock: gets the phases `offload` and `restore`, where something moves.
        """
        self._offload = offload
        self._chunks = chunks
        self._buffers = [chunk for chunk in wrapped if isinstance(chunk, DistributedDataParallel)]
        self._optimizer = optimizer
        self._clock = clock
        self._device = next(chunks[0].parameters()).device
        self._weights, self._states = HostCopies(self._device), HostCopies(self._device)
        self._released = 0
        """Bytes of the gradient buffers that are released now."""
        self._moved = Moved()

    @property
    def away_bytes(self) -> int:
        """Bytes that this policy has given up for now."""
        return self._weights.nbytes + self._states.nbytes + self._released

    def take_moved(self) -> Moved:
        """What has moved since the last call."""
        moved, self._moved = self._moved, Moved()
        return moved

    def offload(self) -> None:
        """Make room for engines, as far as actor.offload says. What is away already stays."""
        weights = [t for t in self._tensors_of_weights() if resident(t)] if self._offload == "all" else []
        states = [t for t in self._tensors_of_states() if resident(t)] if self._offload != "none" else []
        buffers = self._buffers if self._offload != "none" and not self._released else []
        if not (weights or states or buffers):
            return
        with self._clock.phase("offload"):
            self._moved.offloaded += self._weights.offload(weights) + self._states.offload(states)
            for chunk in buffers:
                every = (*chunk.buffers, *chunk.expert_parallel_buffers)
                self._released += sum(buffer.grad_data.untyped_storage().nbytes() for buffer in every)
                chunk.offload_grad_buffers()
            self._moved.released += self._released if buffers else 0
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def restore_weights(self) -> None:
        """Bring back what a forward pass needs."""
        if self._weights.nbytes:
            with self._clock.phase("restore"):
                self._moved.restored += self._weights.restore()
                self._weights.arrived()

    def restore(self, wait: bool = True) -> None:
        """Bring back what training needs. wait=False: call `arrived` before the optimizer works."""
        if self.away_bytes:
            with self._clock.phase("restore"):
                self._moved.restored += self._weights.restore()
                for chunk in self._buffers:
                    chunk.restore_grad_buffers()
                self._released = 0
                self._moved.restored += self._states.restore()
                self._weights.arrived()
        if wait:
            self.arrived()

    def arrived(self) -> None:
        """The optimizer's states are there for whatever is done from now on."""
        self._states.arrived()

    def weight(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter as a plain tensor on its device, wherever its memory is. Read it, never write."""
        return in_bf16(self._weights.values(tensor))

    def _tensors_of_weights(self) -> Iterator[torch.Tensor]:
        for chunk in self._chunks:
            yield from (t for t in chain(chunk.parameters(), chunk.buffers()) if not is_float8tensor(t))

    def _tensors_of_states(self) -> Iterator[torch.Tensor]:
        """fp32 shards and Adam moments; what the optimizer steps in place, as in fp32 training, is a weight."""
        if self._optimizer is None:
            return
        weights = {storage_key(tensor.untyped_storage()) for tensor in self._tensors_of_weights()}
        for part in optimizer_parts(self._optimizer):
            adam = getattr(part, "optimizer", None)
            if adam is None:  # a rank without parameters for this part
                continue
            masters = (tensor for group in adam.param_groups for tensor in group["params"])
            moments = (value for state in adam.state.values() for value in state.values())
            for tensor in chain(masters, moments):
                here = isinstance(tensor, torch.Tensor) and tensor.device == self._device
                if here and storage_key(tensor.untyped_storage()) not in weights:
                    yield tensor


def resident(tensor: torch.Tensor) -> bool:
    """Whether its memory is on its device."""
    return tensor.untyped_storage().nbytes() > 0
