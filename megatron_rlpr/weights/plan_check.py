"""Whether the pieces that ranks write fill every tensor of a checkpoint once, in time that grows with their number.

torch asks this on the first rank, while all others wait, and looks at all pairs of pieces that meet in the tensor's
longest dimension. Experts meet in all but the first two: 2.1 s for 3,072 pieces, four times that for twice as many.
Qwen3-30B-A3B has 12,288 of one tensor and 6,144 of another, and three more of each for its optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_rlpr.types import IntArray

_NAMED = 5
"""Errors that are told."""


@contextmanager
def planned_quickly() -> Iterator[None]:
    """What torch plans meanwhile is checked by `plan_errors`; ValueError where that finds any."""
    of_torch = default_planner._validate_global_plan

    def checked(global_plan: Sequence[Any], metadata: Metadata) -> Any:
        if errors := plan_errors(global_plan, metadata):
            raise ValueError(f"the plan of a checkpoint is wrong: {'; '.join(errors[:_NAMED])}")
        # What stands for "nothing wrong" differs between releases of torch: True, or an empty list.
        return of_torch([], Metadata({}))

    default_planner._validate_global_plan = checked
    try:
        yield
    finally:
        default_planner._validate_global_plan = of_torch


def plan_errors(global_plan: Sequence[Any], metadata: Metadata) -> list[str]:
    """What is wrong with a plan, as torch finds it; empty: nothing. global_plan: of every rank."""
    errors = []
    for key, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, BytesStorageMetadata) or not stored.size:
            continue
        starts = np.array([tuple(chunk.offsets) for chunk in stored.chunks], dtype=np.int64)
        sizes = np.array([tuple(chunk.sizes) for chunk in stored.chunks], dtype=np.int64)
        ends = starts + sizes
        outside = ((starts < 0) | (sizes < 0) | (ends > np.array(stored.size))).any(axis=1)
        for piece in np.flatnonzero(outside):
            errors.append(f"key:{key}, of size {tuple(stored.size)}, has a piece outside of it: {stored.chunks[piece]}")
        for one, other in overlapping(starts, ends):
            errors.append(f"key:{key} has overlapping pieces: {stored.chunks[one]} {stored.chunks[other]}")
        elements = int(sizes.prod(axis=1).sum())
        if len(global_plan) > 1 and elements != prod(stored.size):
            errors.append(f"key:{key} has {prod(stored.size)} elements, its pieces have {elements}")
    return errors


def overlapping(starts: IntArray, ends: IntArray) -> Iterator[tuple[int, int]]:
    """The pairs among n boxes [n, dimensions] that overlap.

    Dimension by dimension, boxes are divided into groups with room between them; only what is left in one group at the
    end is compared pair by pair.
    """
    groups = [np.arange(len(starts))]
    for begin, end in zip(starts.T, ends.T, strict=True):
        divided = []
        for group in groups:
            order = group[np.argsort(begin[group], kind="stable")]
            reach = np.maximum.accumulate(end[order])
            cuts = np.flatnonzero(begin[order[1:]] >= reach[:-1]) + 1
            divided += [part for part in np.split(order, cuts) if len(part) > 1]
        groups = divided
    for group in groups:
        for one, other in combinations(sorted(group.tolist()), 2):
            if (starts[one] < ends[other]).all() and (starts[other] < ends[one]).all():
                yield one, other
