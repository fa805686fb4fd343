"""Scales of the next step from the amax history of the past ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import largest, scale_of


def fused_amax_and_scale_update_after_reduction(
    reduced: Tensor,
    histories: Sequence[Tensor],
    scales: Sequence[Tensor],
    algorithm: str,
    fp8_dtype: int,
    margin: float,
) -> None:
    """Append this step's amax, reduced over all ranks, to each history [length, n], and choose each scale [n] anew.

    Row 0 of a history is where quantizers leave the running step's amax; it starts at 0 again.
    """
    top = largest(fp8_dtype) * 2.0**-margin
    sizes = [scale.numel() for scale in scales]
    for seen, history, scale in zip(reduced[: sum(sizes)].split(sizes), histories, scales, strict=True):
        latest = torch.where(seen != 0, seen, history[0])
        rolled = torch.cat([history[1:], latest[None]])
        amax = latest if algorithm == "most_recent" else rolled.amax(0)
        scale.copy_(torch.where((amax > 0) & torch.isfinite(amax), scale_of(amax, top), scale))
        history.copy_(rolled)
        history[0].zero_()


def compute_amax(tensor: Tensor, amax: Tensor) -> None:
    amax.copy_(tensor.abs().amax().reshape(amax.shape))
