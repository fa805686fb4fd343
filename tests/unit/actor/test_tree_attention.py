"""Tree attention equals plain attention of every root-to-leaf path, forward and backward."""

from __future__ import annotations

import pytest
import torch
from forests import Forest, forests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.attention.block_attention import BlockAttention, BlockBackend
from megatron_rlpr.actor.attention.block_layout import attention_runs
from megatron_rlpr.actor.attention.paged_attention import PagedBackend
from megatron_rlpr.actor.attention.paged_layout import PAGE_TOKENS, paged_paths

CPU = torch.device("cpu")


WINDOWS = st.sampled_from([0, 1, 2, 5, 100])


def path_attention(
    forest: Forest, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, softcap: float | None = None
) -> torch.Tensor:
    """Every token attends to its own path, one by one: q [T, K, g, D], k, v [K, T, D]."""

    def scores(token: int, path: list[int]) -> torch.Tensor:
        raw = torch.einsum("kgd,ksd->kgs", q[token], k[:, path])
        return raw if softcap is None else softcap * torch.tanh(raw / softcap)

    paths = [path[-window:] for path in forest.paths]
    return torch.stack(
        [torch.einsum("kgs,ksd->kgd", scores(t, path).softmax(-1), v[:, path]) for t, path in enumerate(paths)]
    )


def random_inputs(tokens: int, kv_heads: int = 2, groups: int = 2, dim: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, kv_heads, groups, dim), (kv_heads, tokens, dim), (kv_heads, tokens, dim))
    return [torch.randn(*shape, generator=generator, requires_grad=True) for shape in shapes]


@settings(max_examples=300, deadline=None)
@example(spec=[(1, [(3, []), (1, [])])], block_rows=3, window=0, softcap=None)
@given(spec=forests, block_rows=st.sampled_from([1, 3, 8, 64]), window=WINDOWS, softcap=st.sampled_from([None, 1.5]))
def test_every_token_attends_to_exactly_its_path(
    spec: list, block_rows: int, window: int, softcap: float | None
) -> None:
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    inputs = random_inputs(len(forest.paths))
    cotangent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    blocks = attention_runs(forest.nodes, torch.float32, CPU, window, block_rows)
    out = BlockAttention.apply(*inputs, blocks, softcap)
    grads = torch.autograd.grad((out * cotangent).sum(), inputs)

    expected = path_attention(forest, *inputs, window, softcap)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), inputs)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.lists(
        st.recursive(
            st.tuples(st.integers(1, 80), st.just([])),
            lambda inner: st.tuples(st.integers(1, 80), st.lists(inner, max_size=3)),
            max_leaves=6,
        ),
        min_size=1,
        max_size=2,
    ),
    window=st.sampled_from([0, 1, 2, 33, 100]),
    softcap=st.sampled_from([None, 1.5]),
    head_dim=st.sampled_from([32, 80]),
)
def test_paged_attention_equals_block_attention(spec: list, window: int, softcap: float | None, head_dim: int) -> None:
    """Values and gradients, with pages that fill up in the middle of a node and are shared by its children."""
    if PagedBackend().missing():
        pytest.skip("vLLM's CPU attention kernel is not installed here")
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    tokens, kv_heads, groups, scale = len(forest.paths), 2, 2, 0.3
    generator = torch.Generator().manual_seed(tokens)
    inputs = [
        torch.randn(tokens, n, head_dim, generator=generator, requires_grad=True)
        for n in (kv_heads * groups, kv_heads, kv_heads)
    ]
    cotangent = torch.randn(inputs[0].shape, generator=generator)
    found, expected = [], []
    for backend, results in ((PagedBackend(), found), (BlockBackend(), expected)):
        layout = backend.lay_out(forest.nodes, torch.float32, CPU, window)
        results.append(backend.attend(*inputs, layout, scale, softcap))
        results += torch.autograd.grad((results[0] * cotangent).sum(), inputs)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    for got, want in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-4)


def test_pages_repeat_less_than_one_page_for_every_node() -> None:
    forest = Forest()
    forest.add((205, [(300, [(8, []), (6, [])])] * 8))
    paths = paged_paths(forest.nodes, torch.float32)
    assert len(paths.repeated) <= len(forest.start) * (PAGE_TOKENS - 1)
    assert len(paths.slots) == len(forest.paths) + len(paths.repeated)
    assert len(set(paths.slots.tolist())) == len(paths.slots)
    assert paths.key_counts.tolist() == [len(forest.paths[stop - 1]) for stop in forest.stop]


def test_nothing_of_size_tokens_by_tokens_is_built() -> None:
    forest = Forest()
    forest.add((3000, [(1000, []), (1000, [])]))
    blocks = [block for run in attention_runs(forest.nodes, torch.float32, CPU) for block in run.blocks]
    largest_bias = max(b.bias.numel() for b in blocks)
    assert largest_bias <= 2 * 128 * 1200  # a block that touches both leaves masks the first leaf's part only
    assert sum(b.bias.numel() for b in blocks) < 5000 * 400


def test_a_window_bounds_the_keys_of_every_block() -> None:
    forest = Forest()
    forest.add((3000, [(1000, []), (1000, [])]))
    runs = attention_runs(forest.nodes, torch.float32, CPU, window=256)
    assert max(block.stop_key - block.first_key for run in runs for block in run.blocks) <= 256 + 128 - 1


@pytest.mark.parametrize("kernel", [False, True])
def test_bf16_stays_close_to_fp32(kernel: bool) -> None:
    """Without the kernel by blocks, with it by whatever instructions this processor has for bf16."""
    if kernel and PagedBackend().missing():
        pytest.skip("vLLM's CPU attention kernel is not installed here")
    forest = Forest()
    forest.add((100, [(60, []), (70, [(5, []), (9, [])])]))
    generator = torch.Generator().manual_seed(0)
    tokens = len(forest.paths)
    q, k, v = (
        torch.randn(*shape, generator=generator) for shape in ((tokens, 3, 3, 64), (3, tokens, 64), (3, tokens, 64))
    )
    q = q / 8
    exact = BlockAttention.apply(q, k, v, attention_runs(forest.nodes, torch.float32, CPU))
    low = [x.to(torch.bfloat16) for x in (q, k, v)]
    if kernel:
        by_token = (low[0].flatten(1, 2), low[1].transpose(0, 1), low[2].transpose(0, 1))
        paths = paged_paths(forest.nodes, torch.bfloat16)
        rounded = PagedBackend().attend(*by_token, paths, 1.0, None).view(exact.shape)
    else:
        rounded = BlockAttention.apply(*low, attention_runs(forest.nodes, torch.bfloat16, CPU))
    assert (rounded.float() - exact).norm() / exact.norm() < 0.01
