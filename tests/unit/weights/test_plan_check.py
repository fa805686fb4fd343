"""A checkpoint's plan is refused where torch refuses it, and experts do not make that slow."""

from __future__ import annotations

import time
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_rlpr.weights.plan_check import plan_errors, planned_quickly

TORCHS = default_planner._validate_global_plan
Box = tuple[list[int], list[int]]


def plan(size: tuple[int, ...], boxes: list[Box]) -> Metadata:
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
    stored = TensorStorageMetadata(TensorProperties(), torch.Size(size), chunks)
    return Metadata({"weight": stored, "bytes": BytesStorageMetadata()})


@st.composite
def plans(draw: st.DrawFn) -> Metadata:
    """A tensor cut along a grid, of which some pieces may be missing, moved, or of another size."""
    size = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    edges = [sorted({0, extent, *draw(st.lists(st.integers(0, extent), max_size=2))}) for extent in size]
    cells = product(*(list(pairwise(edge)) for edge in edges))
    boxes = [([low for low, _ in cell], [high - low for low, high in cell]) for cell in cells]
    for box, change in draw(st.lists(st.tuples(st.integers(0, len(boxes) - 1), st.integers(-1, 1)), max_size=2)):
        row, dim = draw(st.sampled_from(boxes[box])), draw(st.integers(0, len(size) - 1))
        row[dim] = max(row[dim] + change, 0)
    return plan(size, draw(st.permutations(boxes))[: draw(st.integers(1, len(boxes)))])


@given(plans(), st.integers(1, 2))
@settings(max_examples=500, deadline=None)
def test_a_plan_is_wrong_where_torch_says_so(metadata: Metadata, ranks: int) -> None:
    plans_of_ranks = [None] * ranks
    ours, torchs = plan_errors(plans_of_ranks, metadata), TORCHS(plans_of_ranks, metadata)  # type: ignore[arg-type]
    assert len(ours) == len(torchs), (ours, torchs)


def test_what_is_wrong_is_named_with_its_pieces() -> None:
    outside, overlap = plan_errors([None] * 2, plan((4, 4), [([0, 0], [2, 4]), ([1, 0], [4, 2])]))
    assert outside.startswith("key:weight, of size (4, 4), has a piece outside of it: ChunkStorageMetadata(")
    assert overlap.startswith("key:weight has overlapping pieces: ")
    assert overlap.count("ChunkStorageMetadata(") == 2
    (missing,) = plan_errors([None] * 2, plan((4, 4), [([0, 0], [2, 4])]))
    assert missing == "key:weight has 16 elements, its pieces have 8"


def test_twelve_thousand_experts_are_checked_in_a_moment() -> None:
    """torch takes half a minute."""
    places = product(range(48), range(128), (0, 768))
    boxes = [([layer, expert, row, 0], [1, 1, 768, 2048]) for layer, expert, row in places]
    metadata = plan((48, 128, 1536, 2048), boxes)
    begin = time.process_time()
    assert plan_errors([None] * 2, metadata) == []
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("of_torch", [TORCHS, lambda *_: True], ids=["a list of errors", "whether it is right"])
def test_torch_asks_ours_only_while_it_is_told_to(of_torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.13 takes what is not empty for an error, PyTorch 2.11 what is not true."""
    monkeypatch.setattr(default_planner, "_validate_global_plan", of_torch)
    right, wrong = plan((4,), [([0], [2]), ([2], [2])]), plan((4,), [([0], [3]), ([2], [2])])
    with planned_quickly():
        assert default_planner._validate_global_plan([None] * 2, right) == of_torch([None] * 2, right)
        with pytest.raises(ValueError, match="the plan of a checkpoint is wrong: key:weight has overlapping pieces: "):
            default_planner._validate_global_plan([None] * 2, wrong)
    assert default_planner._validate_global_plan is of_torch
