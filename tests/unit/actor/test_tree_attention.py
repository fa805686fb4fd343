"""Tree attention equals plain attention of every root-to-leaf path, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.tree_attention import _TreeAttention
from megatron_rlpr.actor.tree_layout import attention_blocks


class Forest:
    """A random forest in depth-first order, with each token's path computed the slow way."""

    def __init__(self) -> None:
        self.start: list[int] = []
        self.stop: list[int] = []
        self.parent: list[int] = []
        self.subtree_stop: list[int] = []
        self.paths: list[list[int]] = []

    def add(self, spec: tuple[int, list], parent: int = -1, path: tuple[int, ...] = ()) -> None:
        length, children = spec
        node, first = len(self.start), len(self.paths)
        self.start.append(first)
        self.stop.append(first + length)
        self.parent.append(parent)
        self.subtree_stop.append(-1)
        path_here = list(path)
        for token in range(first, first + length):
            path_here.append(token)
            self.paths.append(list(path_here))
        for child in children:
            self.add(child, node, tuple(path_here))
        self.subtree_stop[node] = len(self.paths)

    def arrays(self) -> list[np.ndarray]:
        return [np.asarray(a, dtype=np.int64) for a in (self.start, self.stop, self.parent, self.subtree_stop)]


leaf = st.tuples(st.integers(1, 9), st.just([]))
forests = st.lists(
    st.recursive(leaf, lambda inner: st.tuples(st.integers(1, 9), st.lists(inner, max_size=3)), max_leaves=8), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(spec=forests, block_rows=st.sampled_from([1, 3, 8, 64]))
def test_every_token_attends_to_exactly_its_path(spec: list, block_rows: int) -> None:
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    tokens, kv_heads, groups, dim = len(forest.paths), 2, 2, 4
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(tokens, kv_heads, groups, dim, generator=generator, requires_grad=True)
    k = torch.randn(kv_heads, tokens, dim, generator=generator, requires_grad=True)
    v = torch.randn(kv_heads, tokens, dim, generator=generator, requires_grad=True)
    cotangent = torch.randn(tokens, kv_heads, groups, dim, generator=generator)

    blocks = attention_blocks(*forest.arrays(), torch.float32, torch.device("cpu"), block_rows)
    out = _TreeAttention.apply(q, k, v, blocks)
    grads = torch.autograd.grad((out * cotangent).sum(), (q, k, v))

    expected = torch.stack(
        [
            torch.einsum("kgs,ksd->kgd", torch.einsum("kgd,ksd->kgs", q[t], k[:, path]).softmax(-1), v[:, path])
            for t, path in enumerate(forest.paths)
        ]
    )
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), (q, k, v))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_nothing_of_size_tokens_by_tokens_is_built() -> None:
    forest = Forest()
    forest.add((3000, [(1000, []), (1000, [])]))
    blocks = attention_blocks(*forest.arrays(), torch.float32, torch.device("cpu"))
    largest_bias = max(b.bias.numel() for b in blocks)
    assert largest_bias <= 2 * 128 * 1200  # a block that touches both leaves masks the first leaf's part only
    assert sum(b.bias.numel() for b in blocks) < 5000 * 400


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_bf16_stays_close_to_fp32(dtype: torch.dtype) -> None:
    forest = Forest()
    forest.add((100, [(60, []), (70, [(5, []), (9, [])])]))
    generator = torch.Generator().manual_seed(0)
    tokens = len(forest.paths)
    q, k, v = (torch.randn(*shape, generator=generator) for shape in ((tokens, 3, 3, 64), (3, tokens, 64), (3, tokens, 64)))
    q = q / 8
    exact = _TreeAttention.apply(q, k, v, attention_blocks(*forest.arrays(), torch.float32, torch.device("cpu")))
    rounded = _TreeAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), attention_blocks(*forest.arrays(), dtype, torch.device("cpu")))
    assert (rounded.float() - exact).norm() / exact.norm() < 0.01
