"""Experts' tokens, filled up with zero rows to what FP8 products take, and without them again."""

from __future__ import annotations

from torch import Tensor


def fused_multi_row_padding(rows: Tensor, padded: Tensor, counts: list[int], padded_counts: list[int]) -> None:
    """rows [sum(counts), N] -> padded [sum(padded_counts), N], in place."""
    parts = zip(rows.split(counts), padded.split(padded_counts), strict=True)
    for part, into in parts:
        into.zero_()
        into[: len(part)] = part


def fused_multi_row_unpadding(padded: Tensor, rows: Tensor, padded_counts: list[int], counts: list[int]) -> None:
    """The inverse."""
    for part, into in zip(padded.split(padded_counts), rows.split(counts), strict=True):
        into.copy_(part[: len(into)])
