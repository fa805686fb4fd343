"""`mxfp8`: a power of two, one byte, for every 32 elements: along rows and, quantised anew, along columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import (
    amax_of_blocks,
    as_matrix,
    decode,
    e8m0_of,
    e8m0_value,
    encode,
    largest,
    padded,
    spread,
)

BLOCK = 32
ROW, COLUMN = (1, BLOCK), (BLOCK, 1)


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise what the compiled module raises for sizes that are no multiples of a block."""
    if shape[-1] % BLOCK or (torch.Size(shape).numel() // shape[-1]) % BLOCK:
        raise RuntimeError(f"MXFP8 requires tensor dims that are divisible by {BLOCK} (got shape={shape})")


def fill(output: Any, tensor: Tensor, quantizer: Any, store: Any) -> None:
    """Write tensor's bytes and scales into output, by `store(output, attribute, value)`."""
    x, fp8 = as_matrix(tensor).float(), quantizer.dtype
    for side, wanted, block in (("row", quantizer.rowwise_usage, ROW), ("column", quantizer.columnwise_usage, COLUMN)):
        if not wanted:
            continue
        if quantizer.with_2d_quantization:
            squares = amax_of_blocks(x, BLOCK, BLOCK)
            amax = squares.repeat_interleave(BLOCK // block[0], 0).repeat_interleave(BLOCK // block[1], 1)
        else:
            amax = amax_of_blocks(x, *block)
        byte = e8m0_of(amax, largest(fp8))
        store(
            output, f"_{side}wise_data", encode(x / spread(e8m0_value(byte), *block, x.shape), fp8).view(tensor.shape)
        )
        of_scales = quantizer.get_scale_shape(tensor.shape, side == "column")
        store(output, f"_{side}wise_scale_inv", padded(byte, of_scales))
    # The order in which a GPU's GEMM wants the scales is a flag only: they lie in plain order here.
    output._with_gemm_swizzled_scales = bool(quantizer.optimize_for_gemm)


def matrix(tensor: Any, rowwise: bool) -> Tensor:
    """The fp32 [m, k] that a GEMM reads from the row-wise or the column-wise copy."""
    side, block = ("row", ROW) if rowwise else ("column", COLUMN)
    data, byte = (getattr(tensor, f"_{side}wise_{part}") for part in ("data", "scale_inv"))
    if data is None:
        raise RuntimeError(f"a GEMM needs the {side}-wise copy of an MXFP8 tensor, which is missing")
    y = decode(as_matrix(data), tensor._fp8_dtype)
    return y * spread(e8m0_value(byte), *block, y.shape)


def swizzle_scales_for_gemm_(*tensors: Any) -> None:
    for tensor in tensors:
        tensor._with_gemm_swizzled_scales = True


def dequantize(tensor: Any, dtype: torch.dtype) -> Tensor:
    if tensor._with_gemm_swizzled_scales:
        raise RuntimeError("cannot dequantize MXFP8 with swizzled scales")
    return matrix(tensor, tensor._rowwise_data is not None).view(tensor.size()).to(dtype)
