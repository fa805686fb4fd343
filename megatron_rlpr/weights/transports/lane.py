"""One way of weights from a rank of the trainer to engines: a transport, and what of the weights goes over it.

Whole tensors go over one lane, from the first rank to all workers of every engine. Slices go over one lane for each
rank of an engine (`rollout.ray.lanes`): rank r of the trainer sends to worker r of every engine what that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from megatron_rlpr.weights.receiver import Sent
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.delta import DeltaSender
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightSender, WeightSource


@dataclass(frozen=True)
class Takers:
    """The engines that take one edition of the weights (equal numbers mean equal weights), in this order.

    workers: of each. names: of their processes. hosts: where they are, see `shared_memory.this_host`. held: the
    editions that they hold.
    """

    edition: int
    workers: int
    names: tuple[str, ...]
    hosts: tuple[str, ...]
    held: tuple[int | None, ...]


@dataclass(frozen=True)
class LaneReport:
    """How one export went over a lane.

    lost: place of an engine among the takers -> why it did not get everything. broke: why nobody may use what came;
    empty: it did not. checksum: of what was exported. sent: how it left, with `weights.delta`.
    """

    lost: dict[int, str]
    broke: str = ""
    checksum: str = ""
    sent: Sent | None = None


class Lane:
    """Lives on the rank that sends, for the whole run."""

    def __init__(self, transports: Transports, delta: bool = False) -> None:
        """delta: send engines only what has changed since the weights that they hold (`weights.transports.delta`)."""
        self._transports = transports
        self.delta = DeltaSender() if delta else None

    @contextmanager
    def opened(self, takers: Takers, readers: int) -> Iterator[OpenLane]:
        """For one export to these engines, `readers` workers of each. UserError when the transport cannot reach one."""
        transport = self._transports.reaching(takers.hosts)
        names = [f"{name}, worker {worker}" for name in takers.names for worker in range(readers)]
        with transport.sender(names) as sender:
            yield OpenLane(sender, self.delta, takers, readers)


class OpenLane:
    """A lane within one export."""

    def __init__(self, sender: WeightSender, delta: DeltaSender | None, takers: Takers, readers: int) -> None:
        self._sender, self._delta, self._takers, self._readers = sender, delta, takers, readers
        self._stream = None if delta is None else delta.stream((), takers.edition, takers.held)

    def sources(self) -> list[WeightSource]:
        """For each of the engines, in their order."""
        plain = [self._sender.source(place * self._readers) for place in range(len(self._takers.names))]
        return plain if self._stream is None else [self._stream.source(source) for source in plain]

    def send(self, tensors: Iterable[NamedTensor], ended: Callable[[], Sequence[int]]) -> LaneReport:
        """Stream the tensors to the engines. ended: the places of those that are known to have ended their load.

        Returns a report without a checksum. Errors of both arguments are passed on, and WeightTransportError.
        """
        stream = tensors if self._stream is None else replace(self._stream, tensors=tensors)

        def readers_ended() -> list[int]:
            return [place * self._readers + worker for place in ended() for worker in range(self._readers)]

        lost = self._sender.send(stream, readers_ended)
        sent = None if self._delta is None else self._delta.sent
        return LaneReport({reader // self._readers: reason for reader, reason in lost.items()}, sent=sent)
