"""A checkpoint's entries as boxes: what Megatron stores, in the same places and memory, without others' pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import mcore_to_pyt_state_dict
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from megatron_rlpr.weights.stored_boxes import as_boxes, pieces


def weight(layer: int, layers: int, expert: int, experts: int, rows: int = 4, gated: bool = False) -> ShardedTensor:
    """Of one expert of a layer, as Megatron stores it: cut from nothing, with two dimensions in front."""
    data, axes = torch.arange(rows * 3.0).view(rows, 3), ((0, layer, layers), (1, expert, experts))
    entry = ShardedTensor.from_rank_offsets("weight", data, *axes, prepend_axis_num=2)
    return apply_swiglu_sharded_factory(entry, axes) if gated else entry


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([2, 4, 8]), st.booleans(), st.data())
def test_boxes_lie_where_the_pieces_of_the_grid_do_and_make_the_weight_again(
    layers: int, experts: int, rows: int, gated: bool, data: st.DataObject
) -> None:
    layer, expert = data.draw(st.integers(0, layers - 1)), data.draw(st.integers(0, experts - 1))
    entry = weight(layer, layers, expert, experts, rows, gated)
    boxed = as_boxes(entry)
    assert isinstance(boxed, ShardedTensorFactory)
    for box, piece in zip(pieces(boxed), pieces(entry), strict=True):
        assert (box.key, box.dtype, box.replica_id) == (piece.key, piece.dtype, piece.replica_id)
        assert (box.global_shape, box.global_offset) == (piece.global_shape, piece.global_offset)
        assert box.data.data_ptr() == piece.data.data_ptr()
        assert box.local_shape == (1, 1, *piece.local_shape)
        assert not box.has_regular_grid
    assert torch.equal(boxed.merge_fn([box.data for box in pieces(boxed)]), entry.data)


def test_a_weight_without_dimensions_in_front_stays_as_it_is() -> None:
    entry = ShardedTensor.from_rank_offsets("weight", torch.zeros(4, 3), (0, 1, 2))
    assert as_boxes(entry) is entry


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_what_a_rank_plans_does_not_grow_with_the_experts_of_the_others() -> None:
    """The grid's 24,064 pieces take a minute."""
    begin = time.process_time()
    boxes = list(pieces(as_boxes(weight(5, 94, 100, 128, gated=True))))
    planned = mcore_to_pyt_state_dict({"weight": boxes})["weight"]
    assert len(planned.__create_chunk_list__()) == 2
    assert time.process_time() - begin < 1
