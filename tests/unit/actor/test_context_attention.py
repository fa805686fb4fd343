"""What context-parallel ranks compute of their own tokens' queries makes the attention of all, with every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forests import Forest, forests
from hypothesis import given, settings
from hypothesis import strategies as st
from varlen_on_cpu import varlen_on_cpu

from megatron_rlpr.actor.attention.backend import Backend
from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.block_layout import attention_runs
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.flex_attention import FlexBackend
from megatron_rlpr.actor.attention.paged_attention import PagedBackend
from megatron_rlpr.types import IntArray

CPU = torch.device("cpu")

runs_of_ranks = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=12)
"""Which rank has the next so many tokens, again from the beginning when they are used up."""


def forest_of(spec: list) -> Forest:
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    return forest


def shares(tokens: int, runs: list[tuple[int, int]]) -> list[IntArray]:
    owner = np.resize(np.repeat([rank for rank, _ in runs], [length for _, length in runs]), tokens)
    return [np.flatnonzero(owner == rank) for rank in np.unique(owner)]


def values_and_gradients(
    backend: Backend, forest: Forest, parts: list[IntArray | None], head_dim: int, window: int, softcap: float | None
) -> list[torch.Tensor]:
    """Of the queries of all parts. A rank's gradients of keys and values are added to the other ranks'."""
    generator = torch.Generator().manual_seed(len(forest.paths))
    inputs = [torch.randn(len(forest.paths), n, head_dim, generator=generator, requires_grad=True) for n in (4, 2, 2)]
    cotangent = torch.randn(inputs[0].shape, generator=generator)
    out = torch.zeros_like(inputs[0])
    for rows in parts:
        layout = backend.lay_out(forest.nodes, torch.float32, CPU, window, rows)
        mine = torch.arange(len(forest.paths)) if rows is None else torch.from_numpy(rows)
        out = out.index_copy(0, mine, backend.attend(inputs[0][mine], *inputs[1:], layout, 0.3, softcap))
    return [out, *torch.autograd.grad((out * cotangent).sum(), inputs)]


def check(backend: Backend, spec: list, runs: list[tuple[int, int]], window: int, softcap: float | None) -> None:
    forest = forest_of(spec)
    head_dim = 32 if isinstance(backend, PagedBackend) else 16
    found = values_and_gradients(backend, forest, [*shares(len(forest.paths), runs)], head_dim, window, softcap)
    expected = values_and_gradients(BlockBackend(), forest, [None], head_dim, window, softcap)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(spec=forests, runs=runs_of_ranks, window=st.sampled_from([0, 2, 5]), softcap=st.sampled_from([None, 1.5]))
def test_in_blocks(spec: list, runs: list[tuple[int, int]], window: int, softcap: float | None) -> None:
    check(BlockBackend(), spec, runs, window, softcap)


@settings(max_examples=40, deadline=None)
@given(spec=forests, runs=runs_of_ranks, window=st.sampled_from([0, 2, 5]), softcap=st.sampled_from([None, 1.5]))
def test_by_the_kernel_with_pages(spec: list, runs: list[tuple[int, int]], window: int, softcap: float | None) -> None:
    if PagedBackend().missing():
        pytest.skip("vLLM's CPU attention kernel is not installed here")
    spec = [(length + 30, children) for length, children in spec]  # more than a page
    check(PagedBackend(), spec, runs, window, softcap)


@settings(max_examples=60, deadline=None)
@given(spec=forests, runs=runs_of_ranks, shortest=st.sampled_from([1, 3, 100]))
def test_by_a_cascade(spec: list, runs: list[tuple[int, int]], shortest: int) -> None:
    with varlen_on_cpu():
        check(CascadeBackend(shortest), spec, runs, 0, None)


@pytest.mark.parametrize(("window", "softcap"), [(0, None), (70, 1.5)])
def test_by_flex_attention(window: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with whole blocks of queries, with parts of some, and with a single query."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    spec = [(150, [(100, [(8, []), (5, [])]), (60, [])]), (340, [])]
    check(FlexBackend(), spec, [(0, 1), (1, 200), (2, 150), (1, 20), (2, 400)], window, softcap)


def test_blocks_and_keys_are_those_of_the_rows_that_ask() -> None:
    """Nothing of a whole micro-batch is built for the tokens of one rank, but the keys on their paths."""
    forest = forest_of([(1000, [(500, []), (500, [])])])
    runs = attention_runs(forest.nodes, torch.float32, CPU, rows=np.arange(1500, 2000))
    blocks = [block for run in runs for block in run.blocks]
    assert [(runs[0].blocks[0].start, blocks[-1].stop)] == [(0, 500)]
    assert [len(run.keys) for run in runs] == [1500]
