"""Attention over a forest of prefixes: every token attends to its ancestors and to itself.

A drop-in for Megatron's core attention. Queries and keys are rotated by tree depth. What the layout holds decides who
does the
work: vLLM's CPU kernel (`paged_attention`), a flash kernel on CUDA (`flash_tree_attention`), or plain tensor operations
(`block_attention`), which can do everything. Memory grows with tokens only, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rlpr.actor.attention.block_attention import BlockAttention
from megatron_rlpr.actor.attention.flash_attention import flash_tree_attention
from megatron_rlpr.actor.attention.flash_layout import PathSegments
from megatron_rlpr.actor.attention.layout import TreeSeqParams
from megatron_rlpr.actor.attention.paged_attention import PagedAttention
from megatron_rlpr.actor.attention.paged_layout import PagedPaths
from megatron_rlpr.actor.attention.rotary import rotate


class TreeCoreAttention(torch.nn.Module):
    """Megatron core attention over the forest that `packed_seq_params` (a TreeSeqParams) describes.

    windows: sliding window of every layer of the whole model, 0 for none; empty: none anywhere. softcap: of the scores.
    query [T, 1, H/TP, D], key and value [T, 1, K/TP, D], not yet rotated -> [T, 1, H/TP * D].
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *_: Any,
        softmax_scale: float | None = None,
        windows: Sequence[int] = (),
        softcap: float | None = None,
        **__: Any,
    ) -> None:
        super().__init__()
        self.layer_number = layer_number
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.window = windows[layer_number - 1] if windows else 0
        self.softcap = softcap

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None = None,
        packed_seq_params: TreeSeqParams | None = None,
        **_: Any,
    ) -> torch.Tensor:
        if not isinstance(packed_seq_params, TreeSeqParams):
            raise TypeError(
                f"layer {self.layer_number}: tree attention needs TreeSeqParams, got {type(packed_seq_params).__name__}"
            )
        layout = packed_seq_params.layout
        tokens, _one, heads, dim = query.shape
        kv_heads = key.shape[2]
        visible = layout.attention[self.window]
        if isinstance(visible, PagedPaths):
            out = PagedAttention.apply(
                query[:, 0], key[:, 0], value[:, 0], visible, layout.rotary, self.scale, self.softcap
            )
            return out.view(tokens, 1, heads * dim)
        q = rotate(query * self.scale, layout.cos, layout.sin).view(tokens, kv_heads, heads // kv_heads, dim)
        k, v = rotate(key, layout.cos, layout.sin).squeeze(1), value.squeeze(1)
        if isinstance(visible, PathSegments):
            out = flash_tree_attention(q, k, v, visible)
        else:
            k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
            out = BlockAttention.apply(q, k, v, visible, self.softcap)
        return out.reshape(tokens, 1, heads * dim)
