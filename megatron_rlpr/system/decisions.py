"""Who decides for all ranks: what depends on time, disk, network or chance outside the seeds is found out by one of
them.

Ranks that each time a grader, list a folder or ask a server may find different things, and then one of them generates
while another updates. So the first rank finds out, and tells the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_rlpr.types import UserError

Result = TypeVar("Result")


def first_rank_decides(work: Callable[[], Result]) -> Result:
    """Collective over all ranks: run work on the first rank alone, return its result on every rank.

    What work raises there is raised on every rank: a UserError as it is, anything else on the others as a RuntimeError
    that names it. Results are pickled between ranks of this run only. A process without torch.distributed is alone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    told: list[Any] = [None, None]
    own_error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except Exception as error:
            own_error = error
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            told[1] = (isinstance(error, UserError), message)
    dist.broadcast_object_list(told, src=0)
    result, failure = told
    if own_error is not None:
        raise own_error
    if failure is not None:
        is_user_error, message = failure
        raise UserError(message) if is_user_error else RuntimeError(f"the first rank, which decides, failed: {message}")
    decided: Result = result
    return decided
