"""FP8 primary weights, updated by a distributed optimizer: each rank holds a slice of the fp32 weight [h, w].

A scale's block may lie on several ranks, so amaxes are computed of the slices, reduced, and then every rank casts its
own slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import amax_of_blocks, e8m0_value, encode, spread
from transformer_engine_torch.mxfp8 import COLUMN, ROW
from transformer_engine_torch.names import DType


def fp8_block_scaling_compute_partial_amax(piece: Tensor, amax: Tensor, h: int, w: int, start: int, block: int) -> None:
    _put(amax, amax_of_blocks(_in_place(piece, h, w, start), block, block))


def fp8_block_scaling_partial_cast(
    piece: Tensor, out: Tensor, scale: Tensor, h: int, w: int, start: int, block: int, fp8_dtype: int
) -> None:
    whole = _in_place(piece, h, w, start)
    data = encode(whole * spread(scale, block, block, whole.shape), fp8_dtype)
    out.copy_(_slice(data, piece, start).view(out.shape))


def mxfp8_scaling_compute_partial_amax(
    piece: Tensor, amax_row: Tensor, amax_column: Tensor, h: int, w: int, start: int
) -> None:
    whole = _in_place(piece, h, w, start)
    _put(amax_row, amax_of_blocks(whole, *ROW))
    _put(amax_column, amax_of_blocks(whole, *COLUMN))


def mxfp8_scaling_partial_cast(
    piece: Tensor, out_row: Tensor, out_column: Tensor, e_row: Tensor, e_column: Tensor, h: int, w: int, start: int
) -> None:
    whole = _in_place(piece, h, w, start)
    for out, byte, block in ((out_row, e_row, ROW), (out_column, e_column, COLUMN)):
        data = encode(whole / spread(e8m0_value(byte), *block, whole.shape), DType.kFloat8E4M3)
        out.copy_(_slice(data, piece, start).view(out.shape))


def _in_place(piece: Tensor, h: int, w: int, start: int) -> Tensor:
    """fp32 [h, w] with the slice where it belongs and zeros elsewhere."""
    whole = torch.zeros(h * w)
    whole[start : start + piece.numel()] = piece.float().reshape(-1)
    return whole.view(h, w)


def _slice(whole: Tensor, piece: Tensor, start: int) -> Tensor:
    return whole.reshape(-1)[start : start + piece.numel()]


def _put(out: Tensor, numbers: Tensor) -> None:
    out[: numbers.shape[0], : numbers.shape[1]] = numbers.to(out.dtype)
