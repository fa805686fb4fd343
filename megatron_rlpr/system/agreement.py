"""An error on one rank becomes an error on all, so that nobody waits in a collective for a rank that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_rlpr.types import UserError

Result = TypeVar("Result")


class RankError(RuntimeError):
    """Work of all ranks failed; the message names the work, the ranks and their causes."""


def gather_or_raise(work: Callable[[], Result], group: dist.ProcessGroup | None, what: str) -> list[Result]:
    """Collective over group (None: this process alone): run work on every rank, return all results in rank order.

    If work raises on any rank, every rank raises after all have finished: UserError with the first message when all
    failures are users' mistakes, else RankError. Results are pickled between ranks of this run only.
    """
    result: Result | None = None
    own_error: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own_error = error
    outcomes = _all_gather((result, _described(own_error)), group)
    failures = [(rank, failure) for rank, (_, failure) in enumerate(outcomes) if failure is not None]
    if not failures:
        return [outcome for outcome, _ in outcomes]
    if all(is_user_error for _, (is_user_error, _) in failures):
        raise UserError(failures[0][1][1]) from own_error
    causes = "; ".join(f"rank {rank}: {message}" for rank, (_, message) in failures)
    raise RankError(f"{what} failed on {len(failures)} of {len(outcomes)} ranks: {causes}") from own_error


def _described(error: Exception | None) -> tuple[bool, str] | None:
    if error is None:
        return None
    if isinstance(error, UserError):
        return True, str(error)
    return False, f"{type(error).__name__}: {error}"


def _all_gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
