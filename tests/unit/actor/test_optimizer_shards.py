"""A range of a flattened parameter is a few boxes of it, in order and without gaps."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing import ShardedTensor

from megatron_rlpr.actor.optimizer_shards import boxes, pieces

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(shape=shapes, data=st.data())
def test_boxes_hold_the_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, prod(shape))] * 2)))
    whole = torch.arange(prod(shape)).view(shape)
    found = list(boxes(shape, start, stop))
    parts = [
        whole[tuple(slice(at, at + n) for at, n in zip(offset, size, strict=True))].flatten() for offset, size in found
    ]
    assert torch.cat([torch.empty(0, dtype=torch.long), *parts]).tolist() == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), data=st.data())
def test_all_ranks_pieces_put_a_parameter_together(shape: tuple[int, ...], data: st.DataObject) -> None:
    """One of three that tensor-parallel ranks hold, with an axis of experts before."""
    cuts = sorted(data.draw(st.lists(st.integers(0, prod(shape)), max_size=3)))
    weight = torch.arange(float(prod(shape))).view(shape)
    stored = ShardedTensor.from_rank_offsets(
        "w", weight, (0, 1, 4), (1, 2, 3), replica_id=(0, 0, 1), prepend_axis_num=1
    )
    whole = torch.full(stored.global_shape, -1.0)
    for start, stop in zip([0, *cuts], [*cuts, prod(shape)], strict=True):
        for piece in pieces(stored, "optimizer.state.exp_avg", weight.flatten()[start:stop], start).values():
            assert (piece.key, piece.replica_id) == ("optimizer.state.exp_avg.w", (0, 0, 0))
            place = tuple(slice(at, at + n) for at, n in zip(piece.global_offset, piece.local_shape, strict=True))
            assert (whole[place] == -1).all(), "ranks do not write the same"
            whole[place] = piece.data
    mine = whole[1, 2 * shape[0] : 3 * shape[0]]
    assert torch.equal(mine, weight)
    assert int((whole >= 0).sum()) == prod(shape)
