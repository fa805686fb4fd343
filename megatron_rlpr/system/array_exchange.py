"""Arrays between ranks, as the bytes they are: nothing is pickled but errors, and what arrays look like.

Ragged: every rank may bring an array of another length. What ranks hold apart from each other (requests, scores, a
table) goes this way; what they decide is in decisions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from megatron_rlpr.system.decisions import first_rank_decides, gather_or_raise

Array = npt.NDArray[Any]
_FAILED = -1


def gather_arrays(work: Callable[[], Array], what: str) -> list[Array]:
    """Collective over all ranks: run work on every one; what each returned, in rank order, on every rank.

    work: returns an array [L] of the same dtype on every rank, of any length. Where it raises on any rank, every rank
    raises after all have finished, as `gather_or_raise` does. A process without torch.distributed is alone.
    """
    if _alone():
        return gather_or_raise(work, None, what)
    mine, failure = None, None
    try:
        mine = np.ascontiguousarray(work())
    except Exception as error:
        failure = error
    sizes = torch.empty(dist.get_world_size(), dtype=torch.int64)
    dist.all_gather(list(sizes.split(1)), torch.tensor([_FAILED if mine is None else mine.nbytes]))
    if mine is None or int(sizes.min()) == _FAILED:

        def fail() -> None:
            if failure is not None:
                raise failure

        gather_or_raise(fail, dist.group.WORLD, what)
        raise AssertionError("gather_or_raise did not raise")
    padded = np.zeros(int(sizes.max()), dtype=np.uint8)  # gloo gathers equal lengths only
    padded[: mine.nbytes] = mine.view(np.uint8)
    everything = torch.empty(len(sizes), len(padded), dtype=torch.uint8)
    dist.all_gather(list(everything.unbind()), torch.from_numpy(padded))
    rows = everything.numpy()
    return [row[:size].copy().view(mine.dtype) for row, size in zip(rows, sizes.tolist(), strict=True)]


def arrays_of_first_rank(work: Callable[[], Sequence[Array]]) -> list[Array]:
    """Collective over all ranks: run work on the first one alone; the arrays that it returned, on every rank.

    Errors are those of `first_rank_decides`. A process without torch.distributed is alone.
    """
    made: list[Array] = []

    def described() -> list[tuple[str, tuple[int, ...]]]:
        made.extend(np.array(array, order="C") for array in work())
        return [(array.dtype.str, array.shape) for array in made]

    told = first_rank_decides(described)
    arrays = made or [np.empty(shape, dtype=kind) for kind, shape in told]
    for array in arrays:
        if array.size and not _alone():
            dist.broadcast(torch.from_numpy(array.reshape(-1).view(np.uint8)), src=0)
    return arrays


def share_of(count: int) -> slice:
    """Which of count items are this rank's: runs of neighbours of near-equal length, in rank order."""
    rank, ranks = (0, 1) if _alone() else (dist.get_rank(), dist.get_world_size())
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1
