"""`blockwise`: a scale for every 1 x 128 elements (activations, gradients) or 128 x 128 (weights).

A second copy for GEMMs along the other dimension is the same done to the transpose: in one-dimensional blocks it is
quantised anew. Scales are fp32; those of one-dimensional blocks lie transposed, [blocks, rows].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from transformer_engine_torch.fp8_numbers import (
    amax_of_blocks,
    as_matrix,
    decode,
    encode,
    largest,
    padded,
    scale_of,
    spread,
)

BLOCK = 128


def fill(output: Any, tensor: Tensor, quantizer: Any, store: Any) -> None:
    """Write tensor's bytes and inverse scales into output, by `store(output, attribute, value)`."""
    x, shape = as_matrix(tensor).float(), tuple(tensor.shape)
    square = quantizer.block_scaling_dim == 2
    block = (BLOCK if square else 1, BLOCK)
    options = (largest(quantizer.dtype), quantizer.amax_epsilon, quantizer.force_pow_2_scales)
    for side, wanted, y, y_shape in (
        ("row", quantizer.rowwise_usage, x, shape),
        ("column", quantizer.columnwise_usage, x.t(), shape[-1:] + shape[:-1]),
    ):
        if not wanted:
            continue
        scale = scale_of(amax_of_blocks(y, *block), *options)
        data = encode(y * spread(scale, *block, y.shape), quantizer.dtype)
        inverse = 1.0 / scale if square else (1.0 / scale).t()
        store(output, f"_{side}wise_data", data.contiguous().view(y_shape))
        of_scales = quantizer.get_scale_shape(shape, side == "column")
        store(output, f"_{side}wise_scale_inv", padded(inverse, of_scales))


def matrix(tensor: Any, rowwise: bool) -> Tensor:
    """The fp32 [m, k] that a GEMM reads from the row-wise or the column-wise copy."""
    side = "row" if rowwise else "column"
    data, inverse = (getattr(tensor, f"_{side}wise_{part}") for part in ("data", "scale_inv"))
    if data is None:
        raise RuntimeError(f"a GEMM needs the {side}-wise copy of a blockwise tensor, which is missing")
    y = decode(as_matrix(data) if rowwise else data.reshape(data.shape[0], -1), tensor._fp8_dtype)
    square = tensor._is_2D_scaled
    y = y * spread(inverse if square else inverse.t(), BLOCK if square else 1, BLOCK, y.shape)
    return y if rowwise else y.t()
