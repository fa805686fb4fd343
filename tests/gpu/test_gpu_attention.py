"""Tree attention on a GPU: every backend computes what the plain blocks do."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("window", [0, 1, 70])
def test_flash_attention_equals_the_plain_blocks(window: int) -> None:
    """Forward and backward in bf16, a prompt with three branches, grouped queries; the blocks are tested on every
    machine."""
    from megatron_rlpr.actor.attention.block_attention import BlockBackend
    from megatron_rlpr.actor.attention.flash_attention import FlashBackend
    from megatron_rlpr.actor.attention.rotary import Rotary
    from megatron_rlpr.packing import Nodes

    nodes = Nodes(
        *(
            np.array(values, dtype=np.int64)
            for values in ([0, 300, 500, 620], [300, 500, 620, 700], [-1, 0, 0, 2], [700, 500, 700, 700])
        )
    )
    where = torch.device("cuda")
    generator = torch.Generator(device=where).manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=where, dtype=torch.bfloat16, requires_grad=True)

    inputs = leaf(700, 8, 64), leaf(700, 4, 64), leaf(700, 4, 64)
    cotangent = leaf(700, 8, 64).detach()
    rotary = Rotary.at(torch.arange(700, device=where), 1.0 / 1e4 ** (torch.arange(32) / 32), torch.bfloat16)
    fast, plain = (
        backend.attend(*inputs, backend.lay_out(nodes, torch.bfloat16, where, window), rotary, 1 / 8, None)
        for backend in (FlashBackend(), BlockBackend())
    )
    pairs = [(fast, plain)]
    pairs += zip(*(torch.autograd.grad((out * cotangent).sum(), inputs) for out in (fast, plain)), strict=True)
    for found, expected in pairs:
        assert (found.float() - expected.float()).norm() <= 0.02 * expected.float().norm()
