"""The lanes of a hand-over to engines in Ray: one for whole tensors, or one for each rank of an engine.

    trainer's rank 0 ──what rank 0 of an engine holds──> worker 0 of every engine
    trainer's rank 1 ──what rank 1 of an engine holds──> worker 1 of every engine
    other ranks        only take part in the export

The first rank knows the engines. It says who takes weights, gives every engine the sources of all lanes, tells the
other lanes whose load has ended, and serves the engines that take nothing until all lanes are through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore

from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.system.decisions import gather_or_raise, host_group
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.transports.collective import interface_towards
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightSource, WeightTransportError
from megatron_rlpr.weights.transports.lane import Lane, LaneReport, OpenLane, Takers

MakeLane = Callable[[str], Lane]
"""Makes this rank's lane; called with this host's address as the engines see it."""
_WHAT = "the weight hand-over"
_PATIENCE = timedelta(seconds=300)
_LOOK_EVERY_S = 0.05
_ENDED, _FAILED, _THROUGH = "ended", "failed", "through"


@dataclass(frozen=True)
class Engines:
    """What the first rank alone knows, for one export.

    load: has an engine, by its place among the takers, read from a source. ended: the places of those whose load has
    ended; serves the other engines meanwhile.
    """

    takers: Takers
    load: Callable[[int, WeightSource], None]
    ended: Callable[[], Sequence[int]]


@dataclass(frozen=True)
class LanesSource:
    """See `WeightSource`. lanes: of one engine, whose workers take turns on them."""

    lanes: tuple[WeightSource, ...]

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """What comes over the lane of that worker."""
        return self.lanes[worker % len(self.lanes)].receive(worker // len(self.lanes))


class Lanes:
    """All ranks make them together, and take part in every export: the first by `send`, the others by `follow`."""

    def __init__(self, count: int, make_lane: MakeLane) -> None:
        """count: of lanes, from as many ranks, the first ones: 1, or the number of workers of an engine."""
        self.count = count
        self.lane: Lane | None = None
        """This rank's, if it sends."""
        self._group = host_group(count)
        self._first = not dist.is_initialized() or dist.get_rank() == 0
        self._exports = 0
        if self._first or dist.get_rank() < count:
            self.lane = make_lane(self._meet())

    def _meet(self) -> str:
        """The ranks that send meet in a store of the first one; returns this host's address."""
        address, port = gather_or_raise(self._open_store, self._group, "the start of the lanes")[0]
        if self._first:
            return address
        self._store: Store = TCPStore(address, port, is_master=False, timeout=_PATIENCE)
        return interface_towards(address)

    def _open_store(self) -> tuple[str, int]:
        if not self._first:
            return "", 0
        address = ray_cluster.node_address()
        if self.count == 1:
            self._store = HashStore()
            return address, 0
        self._store = served = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        return address, served.port

    def send(self, engines: Engines, weights: ChecksummedStream) -> list[LaneReport]:
        """One export; what came of it on every lane, in the order of the ranks of an engine; empty without takers.

        Errors of the export on any rank that sends, and those of load and ended, are raised on all of these. Whatever
        goes wrong, every rank takes all of the export: the gathers of the others wait for it.
        """
        assert self.lane is not None, "the first rank has one"
        return self._export(self.lane, engines, weights)

    def follow(self, weights: ChecksummedStream) -> None:
        """One export, on a rank that does not know the engines."""
        if self.lane is not None:
            self._export(self.lane, None, weights)
            return
        for _ in weights:
            continue

    def _export(self, lane: Lane, engines: Engines | None, weights: ChecksummedStream) -> list[LaneReport]:
        """engines: on the first rank."""
        self._exports += 1
        exported = iter(weights)
        try:
            takers = gather_or_raise(lambda: None if engines is None else engines.takers, self._group, _WHAT)[0]
            assert takers is not None, "the first rank knows them"
            if not takers.names:
                return []
            store = PrefixStore(str(self._exports), self._store)
            notices = _Notices(store, self.count, len(takers.names), engines)
            with ExitStack() as opening:
                opened, of_lanes = self._opened(opening, lane, takers)
                closing = opening.pop_all()

            def work() -> LaneReport:
                with notices:
                    try:
                        with closing:
                            if engines is not None:
                                for place, lanes in enumerate(zip(*of_lanes, strict=True)):
                                    engines.load(place, LanesSource(lanes))
                            report = opened.send(exported, notices.ended)
                    except WeightTransportError as error:
                        report = LaneReport({}, broke=str(error))
                    finally:
                        for _ in exported:  # before this rank waits for others, who wait for it in the export
                            continue
                return replace(report, checksum=weights.checksum)

            return gather_or_raise(work, self._group, _WHAT)
        finally:
            for _ in exported:
                continue

    def _opened(self, stack: ExitStack, lane: Lane, takers: Takers) -> tuple[OpenLane, list[list[WeightSource]]]:
        """This rank's lane, and by lane the sources of the engines. The stack closes it."""
        opened: list[OpenLane] = []

        def sources() -> list[WeightSource]:
            opened.append(stack.enter_context(lane.opened(takers, takers.workers // self.count)))
            return opened[0].sources()

        of_lanes = gather_or_raise(sources, self._group, _WHAT)
        return opened[0], of_lanes


class _Notices:
    """What the ranks that send tell each other during one export.

    A context around a rank's part of it: what is raised inside ends the part of all; on the first rank it is left when
    all are through.
    """

    def __init__(self, store: Store, lanes: int, takers: int, engines: Engines | None) -> None:
        self._store, self._lanes, self._takers, self._engines = store, lanes, takers, engines

    def ended(self) -> list[int]:
        """The takers whose load has ended; all of them once a rank has failed."""
        if self._store.check([_FAILED]):
            return list(range(self._takers))
        if self._engines is not None:
            places = list(self._engines.ended())
            self._store.set(_ENDED, json.dumps(places))
            return places
        told: list[int] = json.loads(self._store.get(_ENDED)) if self._store.check([_ENDED]) else []
        return told

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._store.set(_FAILED, "")
            return
        self._store.add(_THROUGH, 1)
        while self._engines is not None and self._store.add(_THROUGH, 0) < self._lanes:
            if self._store.check([_FAILED]):
                return
            self.ended()
            time.sleep(_LOOK_EVERY_S)
