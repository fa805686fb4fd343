"""A stream cut into buckets and put together again is the same stream, bit for bit, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.weights.transports.framing import Filled, StreamAssembler, StreamCutter
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightTransportError

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.uint8]
SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple)


@st.composite
def streams(draw: st.DrawFn) -> list[NamedTensor]:
    tensors = []
    for number, (shape, dtype) in enumerate(draw(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=8))):
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        raw = torch.tensor(list(draw(st.binary(min_size=nbytes, max_size=nbytes))), dtype=torch.uint8)
        tensors.append((f'a "name" of its own, ü{number}', raw.view(dtype).view(shape)))
    return tensors


def through_buckets(tensors: list[NamedTensor], capacity: int) -> tuple[list[NamedTensor], list[Filled]]:
    cutter, assembler, buffer = StreamCutter(iter(tensors)), StreamAssembler(), torch.empty(capacity, dtype=torch.uint8)
    found, buckets = [], []
    while not buckets or not buckets[-1].last:
        buckets.append(cutter.fill(buffer))
        found += assembler.tensors(buffer, buckets[-1])
        buffer.fill_(255)  # the next bucket's bytes must not show in what was taken
    return found, buckets


@given(tensors=streams(), capacity=st.integers(120, 600))
@settings(max_examples=150)
def test_every_tensor_comes_out_as_it_went_in(tensors: list[NamedTensor], capacity: int) -> None:
    found, buckets = through_buckets(tensors, capacity)
    assert [name for name, _ in found] == [name for name, _ in tensors]
    for (_, mine), (_, others) in zip(found, tensors, strict=True):
        assert (mine.dtype, mine.shape) == (others.dtype, others.shape)
        assert mine.flatten().view(torch.uint8).tolist() == others.flatten().view(torch.uint8).tolist()
    assert all(filled.payload + filled.description <= capacity for filled in buckets)
    assert sum(filled.payload for filled in buckets) == sum(tensor.nbytes for _, tensor in tensors)


@given(tensors=streams(), capacity=st.integers(200, 600))
@settings(max_examples=50)
def test_all_buckets_but_the_last_are_full(tensors: list[NamedTensor], capacity: int) -> None:
    _, buckets = through_buckets(tensors, capacity)
    assert all(
        filled.payload + filled.description > capacity - 100 for filled in buckets[:-1]
    )  # 100: more than any description here


def test_views_of_any_stride_travel() -> None:
    whole = torch.arange(24.0).view(4, 6)
    found, _ = through_buckets([("t", whole.t()), ("column", whole[:, 1])], 150)
    assert torch.equal(found[0][1], whole.t())
    assert torch.equal(found[1][1], whole[:, 1])


def test_a_bucket_that_cannot_hold_a_description_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a bucket of 30 bytes does not hold the description of model\.embed"):
        StreamCutter([("model.embed", torch.zeros(3))]).fill(torch.empty(30, dtype=torch.uint8))


def assembled(buckets: list[tuple[torch.Tensor, Filled]]) -> list[NamedTensor]:
    assembler = StreamAssembler()
    return [named for buffer, filled in buckets for named in assembler.tensors(buffer, filled)]


def test_a_missing_bucket_is_noticed() -> None:
    cutter = StreamCutter([("a", torch.arange(100)), ("b", torch.arange(100))])
    buckets: list[tuple[torch.Tensor, Filled]] = []
    while not buckets or not buckets[-1][1].last:
        buffer = torch.empty(300, dtype=torch.uint8)
        buckets.append((buffer, cutter.fill(buffer)))
    assert len(buckets) > 4
    for gap in range(len(buckets) - 1):
        with pytest.raises(WeightTransportError, match=r"came after byte|ended within"):
            assembled([bucket for number, bucket in enumerate(buckets) if number != gap])


def test_a_tensor_is_made_only_when_there_is_room_for_it() -> None:
    made: list[int] = []

    def stream():
        for number in range(4):
            made.append(number)
            yield f"t{number}", torch.zeros(100, dtype=torch.uint8)

    cutter = StreamCutter(stream())
    cutter.fill(torch.empty(150, dtype=torch.uint8))
    assert made == [0, 1]


@pytest.mark.parametrize("tensors", [[], [("a", torch.zeros(0))], [("a", torch.arange(9))]])
def test_the_last_bucket_says_so_even_if_it_is_the_only_one(tensors: list[NamedTensor]) -> None:
    found, buckets = through_buckets(tensors, 500)
    assert [filled.last for filled in buckets] == [1]
    assert len(found) == len(tensors)
