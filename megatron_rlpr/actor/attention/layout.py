"""What one micro-batch's forest tells the layers, and how it travels through Megatron to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_rlpr.actor.attention.backend import Backend
from megatron_rlpr.actor.attention.rotary import Rotary


@dataclass(frozen=True)
class TreeLayout:
    """Who sees whom, by sliding window (0: none), as the backend laid it out, and every token's angles."""

    backend: Backend[Any]
    by_window: Mapping[int, Any]
    rotary: Rotary


@dataclass(frozen=True)
class HeadRows:
    """What the last stage computes: the log-prob of `targets` from the hidden state at `source_rows`.

    source_rows, targets: int64 [R]; temperature: divides the logits; chunk_rows: rows with logits at one time.
    """

    source_rows: torch.Tensor
    targets: torch.Tensor
    temperature: float
    chunk_rows: int


class TreeSeqParams(PackedSeqParams):
    """Carries both through Megatron's layers (recompute and pipeline schedules included).

    Its format stays 'sbhd': Megatron then leaves queries, keys and values as [T, 1, heads, dim].
    """

    def __init__(self, layout: TreeLayout, head: HeadRows | None = None) -> None:
        super().__init__(qkv_format="sbhd")
        self.layout = layout
        self.head = head
