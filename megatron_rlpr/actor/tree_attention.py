"""Attention over a forest of prefixes: every token attends to its ancestors and to itself.

A drop-in for Megatron's core attention. It rotates queries and keys by tree depth. Where the layout holds segments, a flash
kernel does the rest (`flash_tree_attention`). Otherwise it works block by block (`tree_layout`): gather the block's keys,
one batched matrix product per query-head group, softmax, one more product. Scores live for one block at a time, small
enough to stay in a CPU's cache. Backward computes them again from queries and keys, which is all that is saved, so memory
grows with tokens only.

Soft-capping (Gemma 2): scores become c tanh(scores / c) before the softmax; its derivative is 1 - (capped / c)**2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rlpr.actor.flash_tree_attention import flash_tree_attention
from megatron_rlpr.actor.path_segments import PathSegments
from megatron_rlpr.actor.rotary import rotate
from megatron_rlpr.actor.tree_layout import AttentionBlock, TreeSeqParams

Blocks = tuple[AttentionBlock, ...]


def _capped_scores(q: torch.Tensor, keys: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Scaled scores of one block, without bias: q [K, g*B, D], keys [K, S, D] -> [K, g*B, S]."""
    scores = torch.bmm(q, keys.transpose(1, 2))
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _add_bias(scores: torch.Tensor, block: AttentionBlock) -> torch.Tensor:
    """Hide from every row what it must not see, in place."""
    by_row = scores.view(scores.shape[0], -1, block.stop - block.start, scores.shape[2])
    tail, front = block.bias.shape[1], block.front_bias.shape[1]
    if tail:
        by_row[..., -tail:] += block.bias
    if front:
        by_row[..., :front] += block.front_bias
    return scores


def _block_queries(x: torch.Tensor, block: AttentionBlock) -> torch.Tensor:
    """Rows of one block out of [T, K, g, D], as [K, g*B, D]."""
    rows = x[block.start : block.stop]
    return rows.permute(1, 2, 0, 3).reshape(x.shape[1], -1, x.shape[3])


class _TreeAttention(torch.autograd.Function):
    """q [T, K, g, D] (already scaled), k, v [K, T, D] -> [T, K, g, D]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks, softcap: float | None = None) -> torch.Tensor:
        heads, groups, dim = q.shape[1:]
        out = torch.empty_like(q)
        for block in blocks:
            scores = _capped_scores(_block_queries(q, block), k.index_select(1, block.keys), softcap)
            weights = torch.softmax(_add_bias(scores, block), dim=-1)
            mixed = torch.bmm(weights, v.index_select(1, block.keys))
            out[block.start : block.stop] = mixed.view(heads, groups, -1, dim).permute(2, 0, 1, 3)
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.softcap = blocks, softcap
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        heads, groups, dim = q.shape[1:]
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for block in ctx.blocks:
            block_q, block_grad = _block_queries(q, block), _block_queries(grad_out, block)
            keys, values = k.index_select(1, block.keys), v.index_select(1, block.keys)
            scores = _capped_scores(block_q, keys, ctx.softcap)
            slope = None if ctx.softcap is None else 1 - (scores / ctx.softcap).square_()
            weights = torch.softmax(_add_bias(scores, block), dim=-1)
            grad_v.index_add_(1, block.keys, torch.bmm(weights.transpose(1, 2), block_grad).float())
            grad_weights = torch.bmm(block_grad, values.transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if slope is not None:
                grad_scores = grad_scores * slope
            grad_q[block.start : block.stop] = torch.bmm(grad_scores, keys).view(heads, groups, -1, dim).permute(2, 0, 1, 3)
            grad_k.index_add_(1, block.keys, torch.bmm(grad_scores.transpose(1, 2), block_q).float())
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


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
            raise TypeError(f"layer {self.layer_number}: tree attention needs TreeSeqParams, got {type(packed_seq_params).__name__}")
        layout = packed_seq_params.layout
        tokens, _one, heads, dim = query.shape
        kv_heads = key.shape[2]
        q = rotate(query * self.scale, layout.cos, layout.sin).view(tokens, kv_heads, heads // kv_heads, dim)
        k, v = rotate(key, layout.cos, layout.sin).squeeze(1), value.squeeze(1)
        visible = layout.attention[self.window]
        if isinstance(visible, PathSegments):
            out = flash_tree_attention(q, k, v, visible)
        else:
            k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
            out = _TreeAttention.apply(q, k, v, visible, self.softcap)
        return out.reshape(tokens, 1, heads * dim)
