"""The norm's values and gradients equal autograd's, with and without vLLM's kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.cpu.kernels import cpu_kernels
from megatron_rlpr.actor.model.norms import _RmsNorm

EPS = 1e-5


def plain(x: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (weight + offset)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 7, 16, 64, 70]),
    offset=st.sampled_from([0.0, 1.0]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_autograd(rows: int, width: int, offset: float, strided: bool, seed: int) -> None:
    """Offset 0 and whole vectors go through the kernel where there is one, offset 1 (Gemma) never does."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 3, width, generator=generator)
    x = (x[:, :, ::2] if strided else x).requires_grad_()
    weight = torch.randn(width, generator=generator, requires_grad=True)
    cotangent = torch.randn(x.shape, generator=generator)
    found, expected = _RmsNorm.apply(x, weight, EPS, offset), plain(x, weight, offset)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(
        *(torch.autograd.grad((y * cotangent).sum(), (x, weight)) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_bf16_is_rounded_once() -> None:
    if cpu_kernels() is None:
        pytest.skip("vLLM's CPU kernels are not installed here")
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 576, generator=generator).bfloat16(), torch.randn(576, generator=generator).bfloat16()
    found, exact = _RmsNorm.apply(x, weight, EPS, 0.0), plain(x.float(), weight.float(), 0.0)
    assert ((found.float() - exact).abs() <= exact.abs() * 2**-8).all()
