"""Tree attention on a GPU: every backend computes what the plain blocks do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_records import Within

from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.flex_attention import FlexBackend
from megatron_rlpr.packing import Nodes
from megatron_rlpr.packing.context import even_shares

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("name", "dtype", "window", "softcap", "ranks", "bound"),
    [
        ("cascade", BF16, 0, None, 1, 0.02),
        ("cascade", BF16, 0, None, 2, 0.02),
        ("flex", BF16, 0, None, 1, 0.02),
        ("flex", BF16, 2, None, 1, 0.02),
        ("flex", BF16, 70, 30.0, 1, 0.02),
        ("flex", BF16, 70, 30.0, 2, 0.02),
        ("flex", FP32, 0, None, 1, 1e-4),
        ("flex", FP32, 0, None, 2, 1e-4),
        ("flex", FP32, 70, 30.0, 1, 1e-4),
    ],
)
def test_tree_attention_equals_the_plain_blocks(
    name: str, dtype: torch.dtype, window: int, softcap: float | None, ranks: int, bound: float, within: Within
) -> None:
    """Forward and backward, the same bits again when repeated; the blocks are tested on every machine.

    Two prompts, branches in branches, answers and nodes of one token, grouped queries. ranks: of context parallelism,
    each of which asks for its own tokens, one after the other.
    """
    start, stop, parent, subtree_stop = (
        [0, 300, 301, 500, 508, 620, 700, 750, 757],
        [300, 301, 500, 508, 620, 700, 750, 757, 762],
        [-1, 0, 1, 2, 1, 0, -1, 6, 6],
        [700, 620, 508, 508, 620, 700, 762, 757, 762],
    )
    nodes = Nodes(*(np.array(values, dtype=np.int64) for values in (start, stop, parent, subtree_stop)))
    where, tokens = torch.device("cuda"), stop[-1]
    generator = torch.Generator(device=where).manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=where, dtype=dtype, requires_grad=True)

    inputs = leaf(tokens, 8, 64), leaf(tokens, 4, 64), leaf(tokens, 4, 64)
    cotangent = leaf(tokens, 8, 64).detach()
    shares = even_shares(np.arange(tokens), ranks)

    def results(backend: CascadeBackend | FlexBackend | BlockBackend) -> list[torch.Tensor]:
        out = torch.zeros_like(inputs[0])
        for rows in shares:
            layout = backend.lay_out(nodes, dtype, where, window, None if ranks == 1 else rows)
            mine = torch.from_numpy(rows).to(where)
            out = out.index_copy(0, mine, backend.attend(inputs[0][mine], *inputs[1:], layout, 1 / 8, softcap))
        return [out, *torch.autograd.grad((out * cotangent).sum(), inputs)]

    backend = {"cascade": CascadeBackend, "flex": FlexBackend}[name]()
    found, again, plain = results(backend), results(backend), results(BlockBackend())
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for what, got, repeated, expected in zip(names, found, again, plain, strict=True):
        assert torch.equal(got, repeated)
        error = (got.float() - expected.float()).norm() / expected.float().norm()
        within(float(error), bound, f"relative error of the {what}")
