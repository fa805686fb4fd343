"""Tree attention block by block, in batched matrix products, with its backward.

For every block of rows (`block_layout`): its keys, gathered once for a run of blocks, one batched matrix product
per query-head group, softmax, one more product. Scores live for one block at a time, small enough to stay in a CPU's
cache. Backward computes them again from queries and keys, which is all that is saved, so memory grows with tokens only.

Soft-capping (Gemma 2): scores become c tanh(scores / c) before the softmax; its derivative is 1 - (capped / c)**2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_rlpr.actor.attention.block_layout import AttentionBlock, Runs, attention_runs
from megatron_rlpr.actor.cpu import loops as cpu_loops
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray


class BlockBackend:
    """Applies everywhere."""

    name = "plain tensor operations"

    def applies(
        self, dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device
    ) -> bool:
        return True

    def missing(self) -> str:
        return ""

    def lay_out(
        self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int = 0, rows: IntArray | None = None
    ) -> Runs:
        return attention_runs(nodes, dtype, device, window, rows=rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Runs, scale: float, softcap: float | None) -> Tensor:
        grouped = (q * scale).view(len(q), k.shape[1], -1, q.shape[2])
        by_head = (x.transpose(0, 1).contiguous() for x in (k, v))
        return BlockAttention.apply(grouped, *by_head, layout, softcap).view(q.shape)


def _capped_scores(q: Tensor, keys: Tensor, softcap: float | None) -> Tensor:
    """Scaled scores of one block, without bias: q [K, g*B, D], keys [K, S, D] -> [K, g*B, S]."""
    scores = torch.bmm(q, keys.transpose(1, 2))
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _add_bias(scores: Tensor, block: AttentionBlock) -> Tensor:
    """Hide from every row what it must not see, in place."""
    by_row = scores.view(scores.shape[0], -1, block.stop - block.start, scores.shape[2])
    tail, front = block.bias.shape[1], block.front_bias.shape[1]
    if tail:
        by_row[..., -tail:] += block.bias
    if front:
        by_row[..., :front] += block.front_bias
    return scores


def _block_queries(x: Tensor, block: AttentionBlock) -> Tensor:
    """Rows of one block out of [Q, K, g, D], as [K, g*B, D]."""
    rows = x[block.start : block.stop]
    return rows.permute(1, 2, 0, 3).reshape(x.shape[1], -1, x.shape[3])


class BlockAttention(torch.autograd.Function):
    """q [Q, K, g, D] (already scaled), k, v [K, T, D] -> [Q, K, g, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, runs: Runs, softcap: float | None = None) -> Tensor:
        heads, groups, dim = q.shape[1:]
        out = torch.empty_like(q)
        for run in runs:
            keys, values = k.index_select(1, run.keys), v.index_select(1, run.keys)
            for block in run.blocks:
                seen = slice(block.first_key, block.stop_key)
                scores = _capped_scores(_block_queries(q, block), keys[:, seen], softcap)
                weights = torch.softmax(_add_bias(scores, block), dim=-1)
                mixed = torch.bmm(weights, values[:, seen])
                out[block.start : block.stop] = mixed.view(heads, groups, -1, dim).permute(2, 0, 1, 3)
        ctx.save_for_backward(q, k, v)
        ctx.runs, ctx.softcap = runs, softcap
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        return *block_gradients(q, k, v, grad_out, ctx.runs, ctx.softcap), None, None


def block_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, runs: Runs, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [Q, K, g, D] (scaled), k and v [K, T, D] from that of the output [Q, K, g, D]."""
    heads, groups, dim = q.shape[1:]
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    for run in runs:
        keys, values = k.index_select(1, run.keys), v.index_select(1, run.keys)
        grad_keys, grad_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
        for block in run.blocks:
            seen = slice(block.first_key, block.stop_key)
            block_q, block_grad = _block_queries(q, block), _block_queries(grad_out, block)
            scores = _capped_scores(block_q, keys[:, seen], softcap)
            slope = None if softcap is None else 1 - (scores / softcap).square_()
            grad_weights = torch.bmm(block_grad, values[:, seen].transpose(1, 2))
            weights, grad_scores = _softmax_gradient(scores, grad_weights, block)
            _add_product(grad_values[:, seen], weights.transpose(1, 2), block_grad)
            if slope is not None:
                grad_scores *= slope
            grad_block = torch.bmm(grad_scores, keys[:, seen]).view(heads, groups, -1, dim)
            grad_q[block.start : block.stop] = grad_block.permute(2, 0, 1, 3)
            _add_product(grad_keys[:, seen], grad_scores.transpose(1, 2), block_q)
        grad_k.index_add_(1, run.keys, grad_keys)
        grad_v.index_add_(1, run.keys, grad_values)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _softmax_gradient(scores: Tensor, grad_weights: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
    """(weights, gradient of the scores), both [K, g*B, S], in place of the scores without bias and grad_weights."""
    if scores.is_cuda:
        weights = torch.softmax(_add_bias(scores, block), dim=-1)
        return weights, torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    rows, keys = scores.shape[0] * scores.shape[1], scores.shape[2]
    tail, front = block.bias, block.front_bias
    cpu_loops.attention_gradient(
        rows, scores, grad_weights, tail, front, block.stop - block.start, keys, tail.shape[1], front.shape[1]
    )
    return scores, grad_weights


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total fp32 [K, S, D] += left [K, S, B] @ right [K, B, D]."""
    if left.dtype == torch.float32:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
