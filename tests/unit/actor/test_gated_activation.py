"""The gate's compiled loops equal autograd of the plain formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.model.gated_activation import _GatedSilu


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 7, 16, 33]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    spread=st.sampled_from([1.0, 60.0]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_autograd(
    rows: int, width: int, dtype: torch.dtype, spread: float, strided: bool, seed: int
) -> None:
    """spread 60: sigmoids that are 0 and 1 in float32. In bf16 every result is rounded once."""
    generator = torch.Generator().manual_seed(seed)
    x = (spread * torch.randn(rows, 2, 2 * width, generator=generator)).to(dtype)
    x = (x[:, 1:] if strided else x).requires_grad_()
    cotangent = torch.randn(*x.shape[:-1], width, generator=generator).to(dtype)
    exact = x.detach().double().requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    expected, found = F.silu(gate) * up, _GatedSilu.apply(x)
    tolerance = {"rtol": 2**-8, "atol": 1e-30} if dtype == torch.bfloat16 else {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    (wanted,), (got,) = (
        torch.autograd.grad(expected, exact, cotangent.double()),
        torch.autograd.grad(found, x, cotangent),
    )
    # The gate's slope is a sum that may cancel.
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance["rtol"], atol=2e-5 * spread)
