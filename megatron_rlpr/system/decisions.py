"""What ranks decide together, so that none waits in a collective for one that failed or saw something else.

Ranks that each time a grader, list a folder or ask a server may find different things, and then one of them generates
while another updates. So the first rank finds out, and tells the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_rlpr.system.stop_signals import Stopped
from megatron_rlpr.types import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_KNOWN = (UserError, Stopped)
"""What is raised on every rank as it is, when nothing else has failed."""
Failure = tuple[type[Exception] | None, tuple[str, ...]]
"""Which of the known errors it is (None: another one), and its arguments or what it says."""


class RankError(RuntimeError):
    """Work of all ranks, or of the one that decides, failed; the message names the ranks and their causes."""


def host_group(ranks: int = 0) -> dist.ProcessGroup | None:
    """A gloo group, for objects and errors, over all ranks or so many, the first; None for a single one. Collective
    over all ranks, also those that are no members.

    It is as patient as the world's own (`trainer.collective_timeout_s`); torch would give it 30 minutes.
    """
    if not dist.is_initialized() or 1 in (ranks, dist.get_world_size()):
        return None
    assert dist.group.WORLD is not None
    members = list(range(ranks)) if ranks else None
    return dist.new_group(members, backend="gloo", timeout=_patience(dist.group.WORLD))


def _patience(group: dist.ProcessGroup) -> timedelta:
    """How long a group waits for a rank on the CPU."""
    limit: timedelta = group._get_backend(torch.device("cpu")).options._timeout  # type: ignore[attr-defined]
    return limit


def first_rank_decides(work: Callable[[], Result]) -> Result:
    """Collective over all ranks: run work on the first rank alone, return its result on every rank.

    What work raises there is raised on every rank: UserError and Stopped as they are, anything else on the others as a
    RankError.
    Results are pickled between ranks of this run only. A process without torch.distributed is alone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    result, failure, own_error = _attempt(work) if dist.get_rank() == 0 else (None, None, None)
    told: list[Any] = [result, failure]
    dist.broadcast_object_list(told, src=0)
    decided, failed = told
    if own_error is not None:
        raise own_error
    if failed is not None:
        kind, said = failed
        raise kind(*said) if kind else RankError(f"the first rank, which decides, failed: {said[0]}")
    chosen: Result = decided
    return chosen


def gather_or_raise(work: Callable[[], Result], group: dist.ProcessGroup | None, what: str) -> list[Result]:
    """Collective over group (None: this process alone): run work on every rank, return all results in rank order.

    If work raises on any rank, every rank raises after all have finished: the first UserError, or Stopped, when all
    failures are of that kind, else RankError. Results are pickled between ranks of this run only.
    """
    result, failure, own_error = _attempt(work)
    outcomes: list[Any] = [(result, failure)]
    if group is not None:
        outcomes = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, (result, failure), group=group)
    failures = [(rank, failed) for rank, (_, failed) in enumerate(outcomes) if failed is not None]
    if not failures:
        return [outcome for outcome, _ in outcomes]
    kind, said = failures[0][1]
    if kind and all(other is kind for _, (other, _) in failures):
        raise kind(*said) from own_error
    causes = "; ".join(f"rank {rank}: {said[0]}" for rank, (_, said) in failures)
    raise RankError(f"{what} failed on {len(failures)} of {len(outcomes)} ranks: {causes}") from own_error


def shared_by_ranks(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Collective over all ranks: work on every item once, by one of them; all results, in order, on every rank.

    items: the same on all ranks. Errors are those of `gather_or_raise`. A process without torch.distributed is alone.
    """
    together = dist.is_initialized() and dist.get_world_size() > 1
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    group = dist.group.WORLD if together else None
    parts = gather_or_raise(lambda: [work(item) for item in items[rank::ranks]], group, "shared work")
    return [parts[number % ranks][number // ranks] for number in range(len(items))]


def require_same(content: bytes, what: str) -> None:
    """Collective over all ranks: RankError on every one, with the ranks that differ, unless all bring the same content.

    Two numbers are exchanged, whatever the content's length. A process without torch.distributed is alone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
    extremes = torch.tensor([digest, ~digest])  # ~ turns the order around: the largest of it is of the smallest digest
    extremes = extremes.cuda() if dist.get_backend() == "nccl" else extremes
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, smallest = int(extremes[0]), ~int(extremes[1])
    if largest != smallest:
        digests = gather_or_raise(lambda: digest, dist.group.WORLD, what)
        others = ", ".join(str(rank) for rank, other in enumerate(digests) if other != digests[0])
        raise RankError(f"{what} differ between ranks: rank {others} has others than rank 0")


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Failure | None, Exception | None]:
    try:
        return work(), None, None
    except _KNOWN as error:
        return None, (type(error), error.args), error
    except Exception as error:
        return None, (None, (f"{type(error).__name__}: {error}",)), error
