"""Merging, cutting and joining parameters loses no bit, and a shard is the fusion of the rank's own pieces."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.weights.mapping import (
    Column,
    GateUp,
    HfTensor,
    ParamMapping,
    Qkv,
    Replicated,
    Row,
    TensorLayout,
    Vocab,
)


@dataclass(frozen=True)
class Case:
    """A parameter with random values and the tensor-parallel size it is cut for."""

    mapping: ParamMapping
    tensors: tuple[torch.Tensor, ...]
    tp_size: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A parameter of any kind whose sizes the tensor-parallel size divides (any vocabulary)."""
    tp = draw(st.sampled_from([1, 2, 3, 4]))
    columns = draw(st.integers(1, 5))
    layout: TensorLayout
    kind = draw(st.sampled_from(["replicated", "column", "row", "vocab", "qkv", "qkv bias", "gate_up"]))
    if kind.startswith("qkv"):
        head_dim, groups, heads_per_group = (
            draw(st.integers(1, 4)),
            tp * draw(st.integers(1, 3)),
            draw(st.integers(1, 4)),
        )
        if draw(st.booleans()):  # more ranks than groups
            groups = draw(st.sampled_from([n for n in range(1, tp + 1) if tp % n == 0]))
            parts = tp // groups
            head_dim, heads_per_group = parts * head_dim, parts * heads_per_group
        rows = (groups * heads_per_group * head_dim, groups * head_dim, groups * head_dim)
        shapes = [(r,) if kind == "qkv bias" else (r, columns) for r in rows]
        layout = Qkv(head_dim)
    elif kind == "gate_up":
        shapes, layout = [(tp * draw(st.integers(1, 4)), columns)] * 2, GateUp()
    elif kind == "vocab":
        shapes, layout = [(draw(st.integers(1, 30)), columns)], Vocab()
    elif kind == "row":
        shapes, layout = [(columns, tp * draw(st.integers(1, 4)))], Row()
    elif kind == "column":
        shapes, layout = [(tp * draw(st.integers(1, 4)), columns)], Column()
    else:
        shapes, layout = [(columns,)], Replicated()
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors = tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    mapping = ParamMapping(("p",), tuple(HfTensor(f"t{i}", shape) for i, shape in enumerate(shapes)), layout)
    return Case(mapping, tensors, tp)


def shard(mapping: ParamMapping, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's part of a full Megatron tensor, by way of the Hugging Face tensors it is read from."""
    stored = dict(zip((t.name for t in mapping.hf), mapping.split(full), strict=True))

    def read(name: str, dim: int | None, start: int, stop: int) -> torch.Tensor:
        return stored[name] if dim is None else stored[name].narrow(dim, start, stop - start)

    return mapping.shard(read, rank, size)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_split_undoes_merge(case: Case) -> None:
    assert same(case.mapping.split(case.mapping.merge(case.tensors)), case.tensors)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_all_shards_together_give_the_tensors_back(case: Case) -> None:
    full = case.mapping.merge(case.tensors)
    shards = [shard(case.mapping, full, rank, case.tp_size) for rank in range(case.tp_size)]
    assert torch.equal(case.mapping.merge(case.mapping.join(shards)), full)
    joined = case.mapping.join(shards)
    assert same(joined, case.tensors)
    assert all(t.is_contiguous() for t in joined)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_shard_has_the_announced_shape(case: Case) -> None:
    full = case.mapping.merge(case.tensors)
    for rank in range(case.tp_size):
        assert tuple(shard(case.mapping, full, rank, case.tp_size).shape) == case.mapping.shard_shape(case.tp_size)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_queries_keys_and_values_are_cut_wherever_their_heads_end(case: Case) -> None:
    """As Megatron's linear layer is: its full rows, evenly."""
    full = case.mapping.merge(case.tensors)
    shards = [shard(case.mapping, full, rank, case.tp_size) for rank in range(case.tp_size)]
    if isinstance(case.mapping.layout, Qkv):
        assert torch.equal(torch.cat(shards), full)


def test_ranks_beyond_the_key_value_heads_cut_a_head_s_rows() -> None:
    """One group of two query heads, head size 2, on two ranks: [q00 q01 q10 q11 | k0 k1 v0 v1]."""
    mapping = ParamMapping(("p",), (HfTensor("q", (4,)), HfTensor("k", (2,)), HfTensor("v", (2,))), Qkv(2))
    merged = mapping.merge([torch.arange(4), torch.tensor([10, 11]), torch.tensor([20, 21])])
    assert [shard(mapping, merged, rank, 2).tolist() for rank in range(2)] == [[0, 1, 2, 3], [10, 11, 20, 21]]


def test_qkv_interleaves_by_query_group() -> None:
    """Two groups of two query heads, head size 1: [q0 q1 k0 v0 | q2 q3 k1 v1]."""
    mapping = ParamMapping(("p",), (HfTensor("q", (4,)), HfTensor("k", (2,)), HfTensor("v", (2,))), Qkv(1))
    merged = mapping.merge([torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])])
    assert merged.tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert shard(mapping, merged, 1, 2).tolist() == [2, 3, 11, 21]


def test_gate_and_up_are_cut_separately() -> None:
    mapping = ParamMapping(("p",), (HfTensor("gate", (4,)), HfTensor("up", (4,))), GateUp())
    merged = mapping.merge([torch.arange(4), torch.arange(10, 14)])
    assert shard(mapping, merged, 1, 2).tolist() == [2, 3, 12, 13]


def test_vocabulary_padding_is_zero_and_comes_last() -> None:
    mapping = ParamMapping(("p",), (HfTensor("embedding", (5, 1)),), Vocab())
    full = torch.arange(1, 6)[:, None]
    assert [shard(mapping, full, rank, 4).flatten().tolist() for rank in range(4)] == [[1, 2], [3, 4], [5, 0], [0, 0]]


@pytest.mark.parametrize(
    ("layout", "shapes", "tp_size"),
    [
        (Column(), [(6, 2)], 4),
        (Row(), [(2, 6)], 4),
        (GateUp(), [(6, 2), (6, 2)], 4),
        (Qkv(4), [(16, 2), (4, 2), (4, 2)], 3),  # heads
        (Qkv(4), [(24, 2), (12, 2), (12, 2)], 2),  # neither are two ranks whole groups, nor three groups whole ranks
        (Qkv(1), [(4, 2), (1, 2), (1, 2)], 4),  # a group's six rows
    ],
)
def test_a_tensor_parallel_size_that_does_not_divide_is_refused(
    layout: TensorLayout, shapes: list[tuple[int, ...]], tp_size: int
) -> None:
    mapping = ParamMapping(("p",), tuple(HfTensor(str(i), shape) for i, shape in enumerate(shapes)), layout)
    with pytest.raises(ValueError, match=f"{tp_size} tensor-parallel ranks do not divide"):
        mapping.shard_shape(tp_size)
