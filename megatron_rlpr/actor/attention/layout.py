"""What the layers and the head are told about one micro-batch's forest, and how it travels through Megatron to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_rlpr.actor.attention.backend import Backend
from megatron_rlpr.actor.attention.rotary import Rotary


@dataclass(frozen=True)
class HeadRows:
    """What the last stage computes: the log-prob of `targets` from the hidden state at `source_rows`.

    source_rows, targets: int64 [R]; temperature: divides the logits; chunk_rows: rows with logits at one time.
    """

    source_rows: Tensor
    targets: Tensor
    temperature: float
    chunk_rows: int


class TreeSeqParams(PackedSeqParams):
    """Goes through Megatron's layers (recompute and pipeline schedules included).

    visible: who sees whom, as the backend laid it out, by sliding window (0: none); rotary: every token's angles.
    Its format stays 'sbhd': Megatron then leaves queries, keys and values as [T, 1, heads, dim].
    """

    def __init__(self, backend: Backend[Any], visible: Mapping[int, Any], rotary: Rotary, head: HeadRows) -> None:
        super().__init__(qkv_format="sbhd")
        self.backend, self.visible, self.rotary, self.head = backend, visible, rotary, head
