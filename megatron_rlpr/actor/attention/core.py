"""Megatron's core attention over a forest of prefixes. Memory grows with tokens only, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_rlpr.actor.attention.layout import TreeSeqParams
from megatron_rlpr.weights.shape import ModelShape


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

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: Any = None, **__: Any
    ) -> Tensor:
        forest = packed_seq_params
        if not isinstance(forest, TreeSeqParams):
            raise TypeError(
                f"layer {self.layer_number}: tree attention needs TreeSeqParams, got {type(forest).__name__}"
            )
        q, k, v = query[:, 0], key[:, 0], value[:, 0]
        out = forest.backend.attend(q, k, v, forest.visible[self.window], forest.rotary, self.scale, self.softcap)
        return out.reshape(len(out), 1, -1)


def windows_of(model: torch.nn.Module) -> frozenset[int]:
    """The sliding windows of the layers that this rank has."""
    return frozenset(module.window for module in model.modules() if isinstance(module, TreeCoreAttention))
