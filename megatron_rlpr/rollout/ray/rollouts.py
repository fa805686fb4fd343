"""Rollouts from a pool of engines in Ray: the first rank talks to the pool, all ranks get the same groups,
as arrays; their texts are decoded by those who own them (`owned`).

An engine that died in the middle of a step needs the current weights again. The policy still has them, and all ranks
are here while the first one waits for the engines: it tells the others whenever the weights are to be exported once
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_rlpr.rollout.engine import ProgressCallback, RolloutError
from megatron_rlpr.rollout.owned import Decode, spread_groups
from megatron_rlpr.rollout.ray.lanes import Lanes, MakeLane
from megatron_rlpr.rollout.ray.pool import EnginePool, Ticket
from megatron_rlpr.rollout.requests import RolloutRequest, group_requests
from megatron_rlpr.system.decisions import gather_or_raise, host_group
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.types import Response, RolloutGroup
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.receiver import Announcement, Confirmation

Result = TypeVar("Result")
_DONE, _EXPORT = 0, 1


class RayRollouts:
    """Every method is collective over all ranks; an error on the first rank raises on all."""

    def __init__(self, make_pool: Callable[[], EnginePool], make_lane: MakeLane, decode: Decode) -> None:
        """make_pool: called on the first rank alone. make_lane: on those that send weights. Collective: makes a gloo
        group for groups and errors."""
        self._make_lane = make_lane
        self._lanes: Lanes | None = None
        """What weights go over, made with the first of them."""
        self._group = host_group()
        self._shares, self._decode = Shares(self._group), decode
        self._pool: EnginePool | None = None
        self.weight_version = 0
        """The hand-over that gave the engines their weights; 0 = the initial weights."""
        self._weights: ChecksummedStream | None = None
        """The policy's, to be exported again as long as they are the last hand-over's."""
        self._begun: RolloutRequest | None = None
        self._under_way: tuple[Ticket, Future[list[Response]]] | None = None
        """On the first rank: what was begun, and the thread that works on it."""
        self.device_in_use_gb = 0.0
        self.asleep = False
        """Never: the engines have GPUs of their own."""
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollouts")

        def start() -> None:
            if self._group is None or dist.get_rank() == 0:
                self._pool = make_pool()

        gather_or_raise(start, self._group, "the start of the engines")

    @property
    def engines_replaced(self) -> int:
        """Engines that died, hung or failed and were replaced so far, as the first rank knows; 0 on the others."""
        return 0 if self._pool is None else self._pool.replaced

    def generate(self, asked: RolloutRequest, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order, the same list on every rank; as colocated rollouts do.

        on_progress is called on the first rank and sees all engines.
        """

        def work(pool: EnginePool) -> list[Response]:
            return pool.finish(pool.begin(group_requests(asked), asked.sampling), on_progress, self._ask)

        return self._responses(asked, work)

    def begin(self, asked: RolloutRequest) -> None:
        """Start to generate in a thread of the first rank, whatever else the ranks do; `collect` waits for it."""
        if self._begun is not None:
            raise RolloutError("rollouts were begun that nobody has collected")

        def start() -> None:
            if self._pool is not None:
                ticket = self._pool.begin(group_requests(asked), asked.sampling)
                self._under_way = ticket, self._threads.submit(self._pool.finish, ticket)

        gather_or_raise(start, self._group, "generation")
        self._begun = asked

    def collect(self, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """What `generate` would have returned for the last `begin`, but for the weights that wrote it."""
        if self._begun is None:
            raise RolloutError("no rollouts were begun")
        asked, self._begun = self._begun, None

        def work(pool: EnginePool) -> list[Response]:
            assert self._under_way is not None, "begin has made it"
            ticket, worker = self._under_way
            responses = pool.finish(ticket, on_progress, self._ask)
            worker.result()
            return responses

        return self._responses(asked, work)

    def _responses(self, asked: RolloutRequest, work: Callable[[EnginePool], list[Response]]) -> list[RolloutGroup]:
        """What the first rank gets from the pool by work, on all ranks."""
        made: list[Response] = []

        def keep(pool: EnginePool) -> int:
            made.extend(work(pool))
            return len(made)

        self._with_the_pool(keep, "generation")
        return spread_groups(self._shares, asked, made if self._pool is not None else None, self._decode)

    def update_weights(self, announced: Announcement, tensors: Iterable[tuple[str, torch.Tensor]]) -> Confirmation:
        """Hand new weights to every engine: whole tensors from the first rank's stream, slices from the first ones',
        one rank for each rank of an engine; the other ranks consume theirs.

        `tensors` are iterated once or more, as often on every rank, here and later (`generate`, `collect`) for engines
        that have lost them. Returns, on every rank, what all engines of the pool have confirmed.
        """
        self._weights = ChecksummedStream.over(tensors)
        if self._lanes is None or self._lanes.count != announced.engine.size:
            self._lanes = Lanes(announced.engine.size, self._make_lane)
        confirmation = self._with_the_pool(lambda pool: pool.deliver(announced, self._ask), "the weight hand-over")
        self.weight_version = announced.version
        return confirmation

    def _with_the_pool(self, work: Callable[[EnginePool], Result], what: str) -> Result:
        """The first rank works with the pool, and all ranks export whenever it asks; what it returns, on every rank."""

        def take_part() -> Result | None:
            if self._pool is None:
                self._follow()
                return None
            try:
                return work(self._pool)
            finally:
                self._command(_DONE)

        result = gather_or_raise(take_part, self._group, what)[0]
        assert result is not None, "the first rank has the pool"
        return result

    def _ask(self) -> None:
        """On the first rank: export the weights to the engines that lack them, together with the other ranks."""
        pool, weights, lanes = self._pool, self._weights, self._lanes
        assert pool is not None, "the first rank has it"
        assert weights is not None, "an engine starts with the folder's weights, and lacks none before a hand-over"
        assert lanes is not None, "they were made with the first hand-over"
        self._command(_EXPORT)
        pool.supply(lambda engines: lanes.send(engines, weights))

    def _follow(self) -> None:
        """On the other ranks: take part in every export until the first rank is done; raises at the end."""
        failure: Exception | None = None
        while self._command() == _EXPORT:
            assert self._weights is not None, "the first rank has begun a hand-over"
            assert self._lanes is not None, "they were made with the first hand-over"
            try:
                self._lanes.follow(self._weights)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _command(self, command: int = _DONE) -> int:
        """What the first rank tells all."""
        told = torch.tensor(command)
        if self._group is not None:
            dist.broadcast(told, src=0, group=self._group)
        return int(told)

    def why_whole(self) -> str:
        """Why the ranks of an engine cannot take slices of their own; empty: they can. Collective."""
        look = "a look at the engines"
        return gather_or_raise(lambda: "" if self._pool is None else self._pool.why_whole(), self._group, look)[0]

    def sleep(self) -> None:
        """Nothing to do: the policy has no use for the engines' GPUs."""

    def rebuild_engines(self) -> None:
        """Nothing to do: the pool replaces an engine by itself, and gives up after several that failed in a row."""
