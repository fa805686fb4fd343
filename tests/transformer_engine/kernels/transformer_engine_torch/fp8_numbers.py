"""FP8 numbers, the scales that bring values into their range, and the blocks that share a scale."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from transformer_engine_torch.names import DType

FP8 = {DType.kFloat8E4M3: torch.float8_e4m3fn, DType.kFloat8E5M2: torch.float8_e5m2}
TORCH = {
    DType.kByte: torch.uint8,
    DType.kInt32: torch.int32,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
    **FP8,
}
_LARGEST_FP32 = torch.finfo(torch.float32).max
_EXPONENT, _MANTISSA = 0x7F800000, 0x007FFFFF


def torch_dtype(dtype: int | torch.dtype) -> torch.dtype:
    """Either way of naming a type, as PyTorch's."""
    return dtype if isinstance(dtype, torch.dtype) else TORCH[DType(dtype)]


def largest(fp8: int) -> float:
    """448 for e4m3, 57344 for e5m2."""
    return torch.finfo(FP8[DType(fp8)]).max


def encode(x: Tensor, fp8: int) -> Tensor:
    """fp32 -> bytes: to the nearest, ties to even; what is too large becomes the largest; nan stays nan."""
    top = largest(fp8)
    return x.clamp(-top, top).to(FP8[DType(fp8)]).view(torch.uint8)


def decode(data: Tensor, fp8: int) -> Tensor:
    """Bytes -> fp32."""
    return data.contiguous().view(FP8[DType(fp8)]).float()


def scale_of(amax: Tensor, top: float, epsilon: float = 0.0, power_of_two: bool = False) -> Tensor:
    """The factor that takes amax to the largest FP8 number; 1 where amax is 0 or not finite."""
    amax = amax.float().clamp(min=epsilon)
    usable = (amax > 0) & torch.isfinite(amax)
    # torch.div, because `top / amax` multiplies by the reciprocal: another last digit than the kernel's division.
    quotient = torch.div(torch.tensor(top), amax)
    scale = torch.where(usable, quotient, torch.ones_like(amax)).clamp(max=_LARGEST_FP32)
    return (scale.view(torch.int32) & _EXPONENT).view(torch.float32) if power_of_two else scale


def e8m0_of(amax: Tensor, top: float) -> Tensor:
    """The smallest power of two 2**(e - 127) by which amax must be divided to fit into FP8, as its byte e."""
    value = amax.float() * torch.tensor(1.0 / top)  # the kernel multiplies by the rounded reciprocal
    bits = value.contiguous().view(torch.int32)
    exponent, mantissa = (bits & _EXPONENT) >> 23, bits & _MANTISSA
    fits_below = (mantissa == 0) | (exponent == 0xFE) | ((exponent == 0) & (mantissa <= 0x400000))
    byte = (exponent + (~fits_below).int()).clamp(max=0xFE)
    return torch.where(value.isnan(), 0xFF, byte).to(torch.uint8)


def e8m0_value(byte: Tensor) -> Tensor:
    """2**(byte - 127), nan for 255."""
    return torch.where(byte == 0xFF, torch.nan, torch.exp2(byte.float() - 127.0))


def as_matrix(x: Tensor) -> Tensor:
    """[..., k] -> [m, k], as all kernels see a tensor."""
    return x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)


def amax_of_blocks(x: Tensor, rows: int, columns: int) -> Tensor:
    """x [m, k] -> the largest magnitude of every block of rows x columns, [ceil(m / rows), ceil(k / columns)]."""
    m, k = x.shape
    down, across = ceil(m / rows), ceil(k / columns)
    whole = pad(x.abs(), (0, across * columns - k, 0, down * rows - m))
    return whole.view(down, rows, across, columns).amax((1, 3))


def spread(of_blocks: Tensor, rows: int, columns: int, shape: torch.Size) -> Tensor:
    """A number of every block -> one for every element of a matrix of this shape; entries beyond it are padding."""
    m, k = shape
    of_blocks = of_blocks[: ceil(m / rows), : ceil(k / columns)]
    return of_blocks.repeat_interleave(rows, 0)[:m].repeat_interleave(columns, 1)[:, :k]


def padded(of_blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zeros of this shape with the numbers in their corner, as GEMMs want scales to lie."""
    out = of_blocks.new_zeros(shape)
    out[: of_blocks.shape[0], : of_blocks.shape[1]] = of_blocks
    return out
