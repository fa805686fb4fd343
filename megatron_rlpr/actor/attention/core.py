"""Megatron's core attention over a forest of prefixes, and what travels through Megatron to it and to the head.

Memory grows with tokens only, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_rlpr.actor.attention.backend import Backend
from megatron_rlpr.actor.attention.context import ContextGather
from megatron_rlpr.actor.attention.rotary import Rotary
from megatron_rlpr.weights.shape import ModelShape


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
    padding: how many of the num_tokens tokens, the last ones, only fill up. context: with whom this rank shares the
    forest, of which these are its tokens; None: it has all.
    Its format stays 'sbhd': Megatron then leaves queries, keys and values as [T, 1, heads, dim].
    """

    def __init__(
        self,
        backend: Backend[Any],
        visible: Mapping[int, Any],
        rotary: Rotary,
        head: HeadRows,
        num_tokens: int,
        padding: int,
        context: ContextGather | None = None,
    ) -> None:
        super().__init__(qkv_format="sbhd")
        self.backend, self.visible, self.rotary, self.head = backend, visible, rotary, head
        self.num_tokens, self.padding, self.context = num_tokens, padding, context


class TreeCoreAttention(torch.nn.Module):
    """Megatron core attention over the forest that `packed_seq_params` (a TreeSeqParams) describes.

    query [T, 1, H/TP, D], key and value [T, 1, K/TP, D], not yet rotated -> [T, 1, H/TP * D].
    """

    def __init__(self, config: TransformerConfig, layer_number: int, *_: Any, shape: ModelShape, **__: Any) -> None:
        super().__init__()
        self.layer_number = layer_number  # from 1, over the whole model
        self.window = shape.window(layer_number - 1)
        self.scale = shape.query_scale or shape.head_dim**-0.5
        self.softcap = shape.attention_softcap
        self.has_bias = shape.qkv_bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: Any = None, **__: Any
    ) -> Tensor:
        forest = packed_seq_params
        if not isinstance(forest, TreeSeqParams):
            raise TypeError(f"layer {self.layer_number}: attention needs TreeSeqParams, got {type(forest).__name__}")
        q, k, v = forest.rotary.rotate(query[:, 0]), forest.rotary.rotate(key[:, 0]), value[:, 0]
        if forest.context is not None:
            k, v = forest.context.keys_and_values(k, v)
        out = forest.backend.attend(q, k, v, forest.visible[self.window], self.scale, self.softcap)
        if self.has_bias and forest.padding:  # which alone makes anything of zeros
            out = torch.nn.functional.pad(out[: -forest.padding], (0, 0, 0, 0, 0, forest.padding))
        return out.reshape(len(out), 1, -1)


def windows_of(chunks: Iterable[torch.nn.Module]) -> set[int]:
    """The sliding windows of the layers that this rank has."""
    layers = (module for chunk in chunks for module in chunk.modules() if isinstance(module, TreeCoreAttention))
    return {layer.window for layer in layers}
