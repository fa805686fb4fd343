"""What every rank makes for its share of the work, on all ranks: arrays, as the bytes they are. Nothing is pickled.

Ranks bring arrays of any lengths. The sizes go first, then every rank sends each other exactly what it has: no rank
receives more than all ranks have made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from megatron_rlpr.system.decisions import gather_or_raise

Array = npt.NDArray[Any]
Work = Callable[[], Sequence[Array]]
_KINDS = tuple(map(np.dtype, (np.int32, np.float32, np.float64, np.uint8)))
_ALIGNED = 8
_FAILED = -1


class Shares:
    """The ranks of a group that share work. rank, size: this one's place, and how many they are."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """group: one that takes CPU tensors; None: this process alone."""
        self._group = group
        self.rank: int = 0 if group is None else dist.get_rank(group)
        self.size: int = 1 if group is None else dist.get_world_size(group)
        self.bytes_received = 0
        """So far, what this rank brought itself included."""

    @staticmethod
    def of_world() -> Shares:
        """All ranks; a process without torch.distributed is alone."""
        return Shares(dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None)

    @property
    def alone(self) -> bool:
        """Whether there is nobody to share with."""
        return self.size == 1

    def part_of(self, count: int) -> slice:
        """Which of count items are this rank's: neighbours, as many as others have or one more, in rank order."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, work: Work, what: str, first_only: bool = False) -> list[tuple[Array, ...]]:
        """Collective: run work on every rank; the arrays of all, in rank order, on every rank.

        work: returns one-dimensional arrays of int32, float32, float64 or uint8. first_only: the first rank alone gets
        them, the others their own. Where work raises on any rank, all raise after all have finished, as
        `gather_or_raise` does; what: names the work then.
        """
        if self.alone:
            return [tuple(made) for made in gather_or_raise(work, None, what)]
        packed, failure = None, None
        try:
            packed = pack(work())
        except Exception as error:
            failure = error
        sizes = torch.empty(self.size, dtype=torch.int64)
        mine = torch.tensor([_FAILED if packed is None else len(packed)])
        dist.all_gather(list(sizes.split(1)), mine, group=self._group)
        if packed is None or int(sizes.min()) == _FAILED:
            gather_or_raise(lambda: _raise(failure), self._group, what)
        assert packed is not None, "what failed has been raised"
        incoming, receivers = sizes.tolist(), self.size
        if first_only:
            incoming, receivers = (incoming if self.rank == 0 else [0] * self.size), 1
        outgoing = [len(packed)] * receivers + [0] * (self.size - receivers)
        received = torch.empty(sum(incoming), dtype=torch.uint8)
        sent = torch.from_numpy(packed).repeat(receivers)
        dist.all_to_all_single(received, sent, incoming, outgoing, group=self._group)
        self.bytes_received += len(received)
        if first_only and self.rank:
            return [unpack(packed)]
        ends = np.cumsum(incoming)
        return [unpack(received.numpy()[end - size : end]) for end, size in zip(ends, incoming, strict=True)]

    def from_first(self, arrays: Sequence[Array] | None) -> tuple[Array, ...]:
        """Collective: the first rank's arrays, on every rank; the others bring None."""
        if self.alone:
            return tuple(arrays or ())
        packed = pack(arrays or ())
        size = torch.tensor([len(packed)])
        dist.broadcast(size, src=0, group=self._group)
        everything = torch.from_numpy(packed) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(everything, src=0, group=self._group)
        self.bytes_received += len(everything)
        return unpack(everything.numpy())


def pack(arrays: Sequence[Array]) -> npt.NDArray[np.uint8]:
    """One-dimensional arrays as bytes that `unpack` reads: kinds and lengths, then every array at a multiple of 8."""
    kinds = [(_KINDS.index(array.dtype), len(array)) for array in arrays]
    parts = [np.array([len(arrays), *(number for pair in kinds for number in pair)], dtype=np.int64).view(np.uint8)]
    for array in arrays:
        content = np.ascontiguousarray(array).view(np.uint8)
        parts += [content, np.zeros(-len(content) % _ALIGNED, dtype=np.uint8)]
    return np.concatenate(parts)


def unpack(packed: npt.NDArray[np.uint8]) -> tuple[Array, ...]:
    """Inverse of `pack`; the arrays lie in the bytes that are given."""
    count = int(packed[:8].view(np.int64)[0])
    head = packed[8 : 8 + 16 * count].view(np.int64).reshape(count, 2)
    arrays, at = [], 8 + 16 * count
    for kind, length in head.tolist():
        size = length * _KINDS[kind].itemsize
        arrays.append(packed[at : at + size].view(_KINDS[kind]))
        at += size + -size % _ALIGNED
    return tuple(arrays)


def node_shape(rank: int, ranks: int) -> tuple[int, int]:
    """(number of this rank's node, ranks of a node), as torchrun counts them; one node where nothing does."""
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return rank // of_node, min(of_node, ranks)


def shares_of_node() -> Shares:
    """The ranks of this rank's node. Collective over all ranks: of several nodes, it makes a group of each."""
    world = Shares.of_world()
    node, of_node = node_shape(world.rank, world.size)
    if of_node == world.size:
        return world
    mine = None
    for number, first in enumerate(range(0, world.size, of_node)):
        ranks = list(range(first, min(first + of_node, world.size)))
        group = dist.new_group(ranks, backend="gloo")
        mine = group if number == node and len(ranks) > 1 else mine
    return Shares(mine)


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure
