"""What every transport offers, to the sender and to the readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_rlpr.weights.receiver import WeightHandoverError

NamedTensor = tuple[str, torch.Tensor]

Ended = Callable[[], Iterable[int]]
"""Called many times a second while a sender waits; returns the numbers of readers that are known to have ended."""


class WeightTransportError(WeightHandoverError):
    """A stream of weights broke off: whoever has taken part of it must not use it."""


class WeightSource(Protocol):
    """Where the workers of one engine get a stream from. Picklable, if its transport reaches other processes."""

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """The stream of one hand-over for the engine's worker of that rank: (name, tensor that nobody else writes to).

        WeightTransportError when it breaks off: a sender that dies or stops never leaves a reader waiting for ever.
        """


class WeightSender(Protocol):
    """One hand-over to a fixed set of readers, numbered from 0."""

    def source(self, first_reader: int) -> WeightSource:
        """For an engine whose workers are the readers first_reader, first_reader + 1, ..."""

    def send(self, tensors: Iterable[NamedTensor], ended: Ended) -> dict[int, str]:
        """Stream everything to the readers; returns those lost on the way, with the reason.

        Whoever is not lost has been sent everything. WeightTransportError when a loss ends the stream for all;
        errors of `tensors` and `ended` are passed on, and no reader takes what it has got for the whole.
        """


class WeightTransport(Protocol):
    """Lives on the trainer's rank that sends, for the whole run."""

    def sender(self, readers: Sequence[str]) -> AbstractContextManager[WeightSender]:
        """For one hand-over to these readers. Equal names in a later call mean the same processes."""


@dataclass(frozen=True)
class InProcess:
    """Tensors of this very process, for an engine inside it."""

    tensors: Iterable[NamedTensor]

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """The tensors as they are, whatever the worker."""
        return iter(self.tensors)
