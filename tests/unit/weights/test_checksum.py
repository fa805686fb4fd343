"""The weights' checksum notices every change and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.weights.checksum import ChecksummedStream, tensor_checksum, weights_checksum

# Around the row length of the checksum (4096 words of 8 bytes: 8192 fp32 values), where edges are.
SIZES = st.one_of(st.integers(1, 40), st.integers(8185, 8200), st.integers(16380, 16390))


@given(size=SIZES, data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=60, deadline=None)
def test_one_changed_value_changes_it(size: int, data: st.DataObject, dtype: torch.dtype) -> None:
    tensor = torch.randn(size).to(dtype)
    changed = tensor.clone()
    changed[data.draw(st.integers(0, size - 1))] += 1
    assert tensor_checksum(changed) != tensor_checksum(tensor)
    assert tensor_checksum(tensor.clone()) == tensor_checksum(tensor)


@given(size=st.integers(16, 20000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_two_values_that_change_places_change_it(size: int, data: st.DataObject) -> None:
    tensor = torch.arange(size, dtype=torch.float32)
    i, j = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    swapped = tensor.clone()
    swapped[i], swapped[j] = tensor[j], tensor[i]
    assert tensor_checksum(swapped) != tensor_checksum(tensor)


def test_shape_and_dtype_belong_to_it() -> None:
    zeros = torch.zeros(4, 2)
    assert len({tensor_checksum(t) for t in (zeros, zeros.view(2, 4), zeros.view(torch.int32), torch.zeros(4, 3))}) == 4


def test_a_view_at_any_offset_counts_like_a_copy() -> None:
    whole = torch.randn(3, 5).to(torch.bfloat16)
    for view in (whole[1], whole[:, 1:], whole.t(), whole.flatten()[3:]):
        assert tensor_checksum(view) == tensor_checksum(view.contiguous().clone())


def test_the_order_of_tensors_does_not_matter_but_their_names_do() -> None:
    a, b = torch.randn(7), torch.randn(7)
    assert weights_checksum([("a", a), ("b", b)]) == weights_checksum([("b", b), ("a", a)])
    assert weights_checksum([("a", a), ("b", b)]) != weights_checksum([("a", b), ("b", a)])


def test_a_stream_passes_everything_on_and_counts_bytes() -> None:
    tensors = [("a", torch.randn(3)), ("b", torch.zeros(2, dtype=torch.bfloat16))]
    stream = ChecksummedStream(tensors)
    assert [name for name, _ in stream] == ["a", "b"]
    assert stream.nbytes == 16
    assert stream.checksum == weights_checksum(tensors)


def test_a_stream_can_be_iterated_again_and_finished_by_another() -> None:
    tensors = {"a": torch.randn(3), "b": torch.randn(2)}
    stream = ChecksummedStream.over(tensors.items())
    assert ChecksummedStream.over(stream) is stream
    assert [name for name, _ in stream] == [name for name, _ in stream]
    assert stream.nbytes == 20, "of one iteration"
    next(iter(stream))
    assert stream.checksum != weights_checksum(tensors.items())
    stream.finish()
    stream.finish()
    assert (stream.nbytes, stream.checksum) == (20, weights_checksum(tensors.items()))
    untouched = ChecksummedStream(tensors.items())
    untouched.finish()
    assert untouched.checksum == stream.checksum
