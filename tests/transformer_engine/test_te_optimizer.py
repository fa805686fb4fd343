"""The optimizer's kernels, scales of the next step, and weights kept in FP8: against PyTorch and whole tensors."""

from __future__ import annotations

import math

import pytest
import te_on_cpu
import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from fp8_recipes import RECIPES, with_gradients
from torch import Tensor
from transformer_engine.pytorch.optimizers import FusedAdam
from transformer_engine.pytorch.quantization import _amax_and_scale_update

E4M3 = tex.DType.kFloat8E4M3


def tensors(seed: int) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=dice) for shape in ((3, 5), (7,), (2, 2, 2))]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [True, False])
def test_fused_adam_equals_pytorchs(decay: float, decoupled: bool) -> None:
    mine, wanted = ([torch.nn.Parameter(t.clone()) for t in tensors(0)] for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}
    found = FusedAdam(mine, adam_w_mode=decoupled, **options)
    reference = (torch.optim.AdamW if decoupled else torch.optim.Adam)(wanted, **options)
    for step in range(4):
        for parameters, optimizer in ((mine, found), (wanted, reference)):
            for parameter, gradient in zip(parameters, tensors(step + 1), strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_norms_and_scaling_of_many_tensors() -> None:
    parts, flag = tensors(0), torch.zeros(1, dtype=torch.int)
    whole, each = tex.multi_tensor_l2norm(2048, flag, [parts], True)
    assert whole.item() == pytest.approx(torch.cat([t.flatten() for t in parts]).norm().item())
    assert each.tolist() == pytest.approx([t.norm().item() for t in parts])
    halves = [torch.empty_like(t) for t in parts]
    tex.multi_tensor_scale(2048, flag, [parts, halves], 0.5)
    assert all(torch.equal(half, part / 2) for half, part in zip(halves, parts, strict=True))
    assert not flag
    parts[1][3] = math.inf
    tex.multi_tensor_scale(2048, flag, [parts, halves], 0.5)
    assert flag


@pytest.mark.parametrize("algorithm", ["max", "most_recent"])
def test_delayed_scales_move_as_in_transformer_engines_python(algorithm: str) -> None:
    """Row 0 of a history holds the running step's amax; one is 0 (never used), one infinite."""
    history = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) * 20
    history[:, 1], history[0, 2], scale = 0, torch.inf, torch.full((5,), 7.0)
    mine, wanted = (history.clone(), scale.clone()), (history.clone(), scale.clone())
    _amax_and_scale_update(*wanted, 448.0, RECIPES["delayed"](amax_compute_algo=algorithm))
    tex.fused_amax_and_scale_update_after_reduction(history[0].clone(), [mine[0]], [mine[1]], algorithm, E4M3, 0)
    assert torch.equal(mine[0], wanted[0])
    torch.testing.assert_close(mine[1], wanted[1], rtol=2e-7, atol=0)  # its Python multiplies by the reciprocal


def test_delayed_scales_stay_where_no_gradient_is_enabled() -> None:
    """A base-probability table made before the first training step would be scored with scales of 1."""
    linear = te.Linear(64, 32, params_dtype=torch.bfloat16)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            with te.autocast(enabled=True, recipe=RECIPES["delayed"]()):
                linear(torch.randn(16, 64).bfloat16())
            with te.autocast(enabled=True, recipe=RECIPES["delayed"]()):
                linear(torch.randn(16, 64).bfloat16())
        moved = not torch.equal(linear.fp8_meta["scaling_fwd"].scale[:2], torch.ones(2))
        assert moved == gradients


@pytest.mark.parametrize("cut", [0, 100, 128 * 130, 40000])
def test_slices_of_a_weight_are_cast_as_the_whole(cut: int) -> None:
    """Blocks lie across the ranks' slices: amaxes are reduced first."""
    weight = torch.randn(200, 320, generator=torch.Generator().manual_seed(0)) * 3
    h, w = weight.shape
    flat, slices = weight.flatten(), ((0, cut), (cut, h * w))
    whole = te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=2)(weight)
    amax = torch.zeros(2, 3)
    for start, stop in slices:
        part = torch.zeros(2, 3)
        if stop > start:
            tex.fp8_block_scaling_compute_partial_amax(flat[start:stop], part, h, w, start, 128)
        amax = torch.maximum(amax, part)
    scale, scale_inv = torch.zeros(2, 3), torch.zeros(2, 3)
    tex.multi_tensor_compute_scale_and_scale_inv(2048, None, [[amax], [scale], [scale_inv]], 448.0, True, 0.0)
    data = torch.zeros(h * w, dtype=torch.uint8)
    for start, stop in slices:
        if stop > start:
            tex.fp8_block_scaling_partial_cast(flat[start:stop], data[start:stop], scale, h, w, start, 128, E4M3)
    assert torch.equal(scale_inv, whole._rowwise_scale_inv[:2, :3])
    assert torch.equal(data.view(h, w), whole._rowwise_data)


def test_slices_of_an_mxfp8_weight_are_cast_as_the_whole() -> None:
    te_on_cpu.pretend_gpu("mxfp8")
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    flat, slices = weight.flatten(), ((0, 1000), (1000, 64 * 96))
    whole = te.MXFP8Quantizer(E4M3)(weight)
    amaxes = torch.zeros(64, 3), torch.zeros(2, 96)
    for start, stop in slices:
        parts = torch.zeros(64, 3), torch.zeros(2, 96)
        tex.mxfp8_scaling_compute_partial_amax(flat[start:stop], *parts, 64, 96, start)
        for amax, part in zip(amaxes, parts, strict=True):
            amax.copy_(torch.maximum(amax, part))
    scales = torch.zeros(64, 3, dtype=torch.uint8), torch.zeros(2, 96, dtype=torch.uint8)
    tex.multi_tensor_compute_scale_inv_e8m0(2048, None, [amaxes, scales])
    data = torch.zeros(2, 64 * 96, dtype=torch.uint8)
    for start, stop in slices:
        tex.mxfp8_scaling_partial_cast(flat[start:stop], *data[:, start:stop], *scales, 64, 96, start)
    assert torch.equal(scales[0], whole._rowwise_scale_inv[:64, :3])
    assert torch.equal(scales[1], whole._columnwise_scale_inv[:2, :96])
    assert torch.equal(data[0].view(64, 96), whole._rowwise_data)
    assert torch.equal(data[1].view(64, 96), whole._columnwise_data)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "swiglu", "geglu"])
def test_activations_and_their_gradients(name: str) -> None:
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    gate = {"swiglu": torch.nn.functional.silu, "geglu": lambda t: torch.nn.functional.gelu(t, approximate="tanh")}
    plain = {
        "gelu": gate["geglu"], "silu": gate["swiglu"], "relu": torch.relu,
        **{key: lambda t, f=f: f(t[:, :8]) * t[:, 8:] for key, f in gate.items()},
    }[name]  # fmt: skip
    y, dx = with_gradients(plain, x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(getattr(tex, name)(x, None), y)
    torch.testing.assert_close(getattr(tex, f"d{name}")(gradient, x, None), dx)
    dbias, again = getattr(tex, f"dbias_d{name}")(gradient, x, None)
    torch.testing.assert_close(dbias, dx.sum(0))
    torch.testing.assert_close(again, dx)
