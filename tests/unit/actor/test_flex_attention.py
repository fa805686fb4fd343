"""FlexAttention over a forest equals attention in blocks; its mask, built from bounds, is the forest's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from forests import Forest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.flex_attention import BLOCK, COMPILATION, FlexBackend, FlexBlocks

CPU = torch.device("cpu")

lengths = st.integers(1, 2 * BLOCK)
long_forests = st.lists(
    st.recursive(
        st.tuples(lengths, st.just([])), lambda inner: st.tuples(lengths, st.lists(inner, max_size=3)), max_leaves=5
    ),
    min_size=1,
    max_size=3,
)


def forest_of(spec: list) -> Forest:
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    return forest


def pairs_of(layout: FlexBlocks) -> torch.Tensor:
    """Who sees whom, bool [T, T], as the kernel finds it out: by block, and in partial blocks by asking."""
    mask = layout.mask
    blocks = mask.kv_num_blocks.shape[-1]
    pairs = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    none = torch.zeros(())
    for query in range(blocks):
        rows = torch.arange(query * BLOCK, (query + 1) * BLOCK)
        for key in mask.kv_indices[0, 0, query, : mask.kv_num_blocks[0, 0, query]].tolist():
            columns = torch.arange(key * BLOCK, (key + 1) * BLOCK)
            pairs[rows[:, None], columns] = mask.mask_mod(none, none, rows[:, None], columns[None, :])
        for key in mask.full_kv_indices[0, 0, query, : mask.full_kv_num_blocks[0, 0, query]].tolist():
            pairs[rows, key * BLOCK : (key + 1) * BLOCK] = True
    return pairs


@settings(max_examples=20, deadline=None)
@given(spec=long_forests, window=st.sampled_from([0, 1, 2, 100, 300]))
def test_the_mask_of_blocks_is_the_forests(spec: list, window: int) -> None:
    forest = forest_of(spec)
    tokens = len(forest.paths)
    layout = FlexBackend().lay_out(forest.nodes, torch.float32, CPU, window)
    expected = torch.zeros(tokens + layout.padding, tokens + layout.padding, dtype=torch.bool)
    for token, path in enumerate(forest.paths):
        expected[token, path[-window:]] = True
    padding = torch.arange(tokens, len(expected))
    expected[padding, padding] = True
    assert torch.equal(pairs_of(layout), expected)


@settings(max_examples=20, deadline=None)
@given(spec=long_forests, window=st.sampled_from([0, 2, 300]))
def test_blocks_are_asked_pair_by_pair_only_where_not_all_pairs_are_visible(spec: list, window: int) -> None:
    layout = FlexBackend().lay_out(forest_of(spec).nodes, torch.float32, CPU, window)
    mask = layout.mask
    by_block = pairs_of(layout).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).all(-1).all(1)
    assert mask.full_kv_num_blocks[0, 0].tolist() == by_block.sum(1).tolist()
    if not window:
        some = pairs_of(layout).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).any(-1).any(1)
        assert torch.equal(mask.to_dense()[0, 0].bool(), some)
        assert (mask.q_num_blocks + mask.full_q_num_blocks)[0, 0].tolist() == some.sum(0).tolist()


def test_nothing_of_size_tokens_by_tokens_is_built() -> None:
    forest = forest_of([(3000, [(1000, []), (1000, [])])])
    layout = FlexBackend().lay_out(forest.nodes, torch.float32, CPU, 256)
    blocks = -(-5000 // BLOCK)
    tensors = [x for x in layout.mask.as_tuple() if isinstance(x, torch.Tensor)]
    assert max(x.numel() for x in tensors) == blocks**2
    kept = [cell.cell_contents for cell in layout.mask.mask_mod.__closure__ or ()]
    assert {len(x) for x in kept} == {blocks * BLOCK}


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [0, 70])
def test_flex_attention_equals_the_blocks(softcap: float | None, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with grouped queries and tokens that fill no whole blocks.

    PyTorch refuses gradients on a CPU, where its compiler has none; without the compiler it has them.
    """
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    forest = forest_of([(150, [(100, [(8, []), (5, [])]), (60, [])]), (40, [])])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(len(forest.paths), n, 16, generator=generator, requires_grad=True) for n in (6, 2, 2)]
    cotangent = torch.randn(inputs[0].shape, generator=generator)
    found, expected = [], []
    for backend, results in ((FlexBackend(), found), (BlockBackend(), expected)):
        layout = backend.lay_out(forest.nodes, torch.float32, CPU, window)
        results.append(backend.attend(*inputs, layout, 0.3, softcap))
        results += torch.autograd.grad((results[0] * cotangent).sum(), inputs)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_one_compilation_serves_every_number_of_tokens_every_window_and_every_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are as many heads as at no time blocks: a number that is fixed would be taken for the same one."""
    compiled = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    kernel = torch.compile(torch.nn.attention.flex_attention.flex_attention, backend=count, **COMPILATION)
    monkeypatch.setattr("megatron_rlpr.actor.attention.flex_attention._kernel", lambda _: kernel)
    for softcap in (30.0, 50.0):
        for prompt, window in ((2, 0), (100, 7), (300, 0), (700, 200)):
            forest = forest_of([(prompt, [(40, []), (9, [])])])
            q, k, v = (torch.randn(len(forest.paths), n, 16) for n in (10, 5, 5))
            layout = FlexBackend().lay_out(forest.nodes, torch.float32, CPU, window)
            FlexBackend().attend(q, k, v, layout, 0.25, softcap)
    assert len(compiled) == 1


def test_a_forest_smaller_than_a_few_blocks_is_padded() -> None:
    layout = FlexBackend().lay_out(forest_of([(3, [(2, []), (1, [])])]).nodes, torch.float32, CPU)
    assert layout.padding == 2 * BLOCK - 6
    assert np.array_equal(pairs_of(layout)[6:, :6], np.zeros((layout.padding, 6)))
