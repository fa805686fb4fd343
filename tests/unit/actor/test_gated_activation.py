"""The gate's own backward equals autograd's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.gated_activation import _GatedSilu


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_values_and_gradients_equal_autograd(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, 2 * width, generator=generator, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(rows, 1, width, generator=generator, dtype=torch.float64)
    gate, up = x.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    found = _GatedSilu.apply(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (found, expected)))
    assert torch.autograd.gradcheck(_GatedSilu.apply, (x,))
