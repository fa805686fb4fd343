"""Bytes and scales of every recipe: against loops over single blocks, and against Transformer Engine's own Python."""

from __future__ import annotations

import math

import pytest
import te_on_cpu
import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from fp8_recipes import relative_error
from torch import Tensor
from transformer_engine.pytorch.custom_recipes.reference_current_scaling import CurrentScalingQuantizerRef

E4M3, E5M2 = tex.DType.kFloat8E4M3, tex.DType.kFloat8E5M2


@pytest.fixture
def x() -> Tensor:
    """[200, 320] of very different magnitudes by row and by column; blocks of 128 are cut at both edges."""
    dice = torch.Generator().manual_seed(1)
    rows, columns = (torch.randn(shape, generator=dice) for shape in ((200, 1), (1, 320)))
    return torch.randn(200, 320, generator=dice) * torch.exp(3 * rows) * torch.exp(2 * columns)


def e4m3(values: Tensor) -> list[int]:
    """The bytes, number by number: the nearest of all e4m3 numbers, of two equally near ones the even byte."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).tolist()
    found = []
    for value in values.double().flatten().tolist():
        byte = min(range(127), key=lambda b, v=value: (abs(numbers[b] - abs(v)), b % 2))
        found.append(byte + (128 if math.copysign(1, value) < 0 else 0))
    return found


def power_below(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def test_numbers_are_rounded_to_the_nearest_and_saturate() -> None:
    values = torch.tensor([0.0, 1.0, 17.0, 18.0, 19.0, 2**-10, 3 * 2**-10, 447.9, 464.0, 1e9, -1e9, -0.3, 0.0019])
    found = te.Float8Quantizer(torch.ones(1), torch.zeros(1), E4M3)(values[None])
    assert found._data.flatten().tolist() == e4m3(values)


def test_delayed_scales_by_what_it_was_given_and_notes_the_amax(x: Tensor) -> None:
    scale, amax = torch.tensor([0.5]), torch.tensor([3.0])
    found = te.Float8Quantizer(scale, amax, E4M3)(x)
    assert found._scale_inv == 2.0
    assert found._data[7].tolist() == e4m3(x[7] * 0.5)
    assert torch.equal(found._transpose, found._data.t())
    assert amax == x.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_tensorwise_equals_transformer_engines_reference(x: Tensor, dtype: torch.dtype, power_of_two: bool) -> None:
    wanted = CurrentScalingQuantizerRef(torch.float8_e5m2, pow_2_scales=power_of_two).quantize(x.to(dtype))
    quantizer = te.Float8CurrentScalingQuantizer(E5M2, device="cpu", force_pow_2_scales=power_of_two)
    found = quantizer(x.to(dtype))
    assert torch.equal(found._data, wanted.data.view(torch.uint8))
    assert torch.equal(found._transpose, wanted.data_t.view(torch.uint8))
    assert torch.equal(found._scale_inv, wanted.scale.view(1))


def test_tensorwise_takes_the_largest_to_the_largest(x: Tensor) -> None:
    found = te.Float8CurrentScalingQuantizer(E4M3, device="cpu")(x)
    scale = 448 / x.abs().max()
    assert found._scale_inv.item() == pytest.approx(1 / scale.item())
    assert found._data[3].tolist() == e4m3(x[3] * scale)


@pytest.mark.parametrize("row", [0, 100, 199])
@pytest.mark.parametrize("block", [0, 2])
def test_blockwise_has_a_scale_for_128_elements_of_a_row(x: Tensor, row: int, block: int) -> None:
    found = te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=1)(x)
    part = x[row, block * 128 : block * 128 + 128]
    scale = power_below(448 / part.abs().max().item())
    assert found._rowwise_scale_inv[block, row] == 1 / scale
    assert found._rowwise_data[row, block * 128 : block * 128 + 128].tolist() == e4m3(part * scale)


@pytest.mark.parametrize("column", [0, 319])
@pytest.mark.parametrize("block", [0, 1])
def test_blockwise_is_quantised_anew_along_columns(x: Tensor, column: int, block: int) -> None:
    found = te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=1)(x)
    part = x[block * 128 : block * 128 + 128, column]
    scale = power_below(448 / part.abs().max().item())
    assert found._columnwise_scale_inv[block, column] == 1 / scale
    assert found._columnwise_data[column, block * 128 : block * 128 + 128].tolist() == e4m3(part * scale)


def test_blockwise_weights_have_a_scale_for_128_x_128(x: Tensor) -> None:
    found = te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=2)(x)
    for i in range(2):
        for j in range(3):
            part = x[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]
            scale = power_below(448 / part.abs().max().item())
            assert found._rowwise_scale_inv[i, j] == 1 / scale == found._columnwise_scale_inv[j, i]
            line = found._rowwise_data[i * 128 + 5, j * 128 : j * 128 + 128]
            assert line.tolist() == e4m3(part[5] * scale)
    assert torch.equal(found._columnwise_data, found._rowwise_data.t())


def test_mxfp8_has_a_power_of_two_for_32_elements(x: Tensor) -> None:
    te_on_cpu.pretend_gpu("mxfp8")
    x = x[:192]
    found = te.MXFP8Quantizer(E4M3)(x)
    for row, block in ((0, 0), (191, 9), (77, 4)):
        part = x[row, block * 32 : block * 32 + 32]
        exponent = math.ceil(math.log2(part.abs().max().item() / 448))
        assert found._rowwise_scale_inv[row, block] == exponent + 127
        assert found._rowwise_data[row, block * 32 : block * 32 + 32].tolist() == e4m3(part / 2.0**exponent)
    part = x[32:64, 77]
    exponent = math.ceil(math.log2(part.abs().max().item() / 448))
    assert found._columnwise_scale_inv[1, 77] == exponent + 127
    assert found._columnwise_data[32:64, 77].tolist() == e4m3(part / 2.0**exponent)


def test_mxfp8_keeps_an_exact_power_of_two_and_refuses_odd_sizes() -> None:
    te_on_cpu.pretend_gpu("mxfp8")
    assert te.MXFP8Quantizer(E4M3)(torch.full((32, 32), 448.0 * 8))._rowwise_scale_inv[0, 0] == 127 + 3
    with pytest.raises((RuntimeError, AssertionError), match="32"):
        te.MXFP8Quantizer(E4M3)(torch.ones(31, 32))


@pytest.mark.parametrize("kind", ["tensorwise", "blockwise 1x128", "blockwise 128x128", "mxfp8"])
def test_what_was_quantised_is_within_half_a_step(kind: str) -> None:
    te_on_cpu.pretend_gpu(kind)
    quantizer = {
        "tensorwise": lambda: te.Float8CurrentScalingQuantizer(E4M3, device="cpu"),
        "blockwise 1x128": lambda: te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=1),
        "blockwise 128x128": lambda: te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=True, block_scaling_dim=2),
        "mxfp8": lambda: te.MXFP8Quantizer(E4M3),
    }[kind]()
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    y = quantizer(x).dequantize()
    assert ((y - x).abs() <= x.abs() / 16 + 1e-3).all()
    assert relative_error(y, x) == pytest.approx(0.026, abs=0.002)


def test_zeros_and_a_nan() -> None:
    found = te.Float8BlockQuantizer(E4M3, rowwise=True, columnwise=False, block_scaling_dim=1)(torch.zeros(4, 128))
    assert torch.equal(found._rowwise_scale_inv[0, :4], torch.ones(4))
    x = torch.ones(16, 16)
    x[2, 3] = torch.nan
    assert te.Float8CurrentScalingQuantizer(E4M3, device="cpu")(x).dequantize()[2, 3].isnan()


def test_a_function_that_is_missing_says_its_name() -> None:
    with pytest.raises(NotImplementedError, match=r"transformer_engine_torch\.fused_attn_fwd"):
        tex.fused_attn_fwd(1, 2)
