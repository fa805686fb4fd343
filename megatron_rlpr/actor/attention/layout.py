"""What the layers need to know about one micro-batch's forest of prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_rlpr.actor.attention.block_layout import AttentionRun
from megatron_rlpr.actor.attention.flash_layout import PathSegments
from megatron_rlpr.actor.attention.paged_layout import PagedPaths

Visible = tuple[AttentionRun, ...] | PathSegments | PagedPaths
"""Who sees whom: blocks for plain tensor operations, segments for a flash-attention kernel, pages for one with paged
keys."""


@dataclass(frozen=True)
class TreeLayout:
    """Everything the layers need to know about one micro-batch's forest: who sees whom, and rotary tables.

    attention: by sliding window (0: none).
    cos, sin: [T, 1, 1, rotary_dim] in the compute dtype.
    """

    attention: Mapping[int, Visible]
    cos: torch.Tensor
    sin: torch.Tensor

    @cached_property
    def rotary(self) -> torch.Tensor:
        """[T, rotary_dim]: cosines of the rotary_dim / 2 angles, then sines."""
        half = self.cos.shape[-1] // 2
        return torch.cat((self.cos[:, 0, 0, :half], self.sin[:, 0, 0, :half]), dim=-1)


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
    """Carries a TreeLayout and the wanted HeadRows through Megatron's layers (recompute and pipeline schedules
    included).

    Its format stays 'sbhd': Megatron then leaves queries, keys and values as [T, 1, heads, dim].
    """

    def __init__(self, layout: TreeLayout, head: HeadRows | None = None) -> None:
        super().__init__(qkv_format="sbhd")
        self.layout = layout
        self.head = head
