"""Tree attention through PyTorch's variable-length flash attention (CUDA, half precision): `cascade_layout`'s calls.

Forward: call c gives o_c and l_c, the log-sum-exp of the scores that it saw. With l = log sum_c exp(l_c), the output is
sum_c exp(l_c - l) o_c, added up in fp32 (`cascade_merge`).

Backward: a score's weight is exp(score - l), and its gradient is weight * (grad_out . value - grad_out . out), which
need l and the merged output only. So each call's own backward, given these two instead of l_c and o_c, returns its
exact share. Shares of several calls or segments add up in fp32, those of two calls at once. No gradient is added in an
order that the GPU's scheduler chooses, so a repeated step is equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from megatron_rlpr.actor.attention.cascade_layout import SHORTEST_LEVEL, Cascade, CascadeCall, cascade
from megatron_rlpr.actor.attention.cascade_merge import merge
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8
"""Head sizes of the flash-attention kernels that come with PyTorch."""


class CascadeBackend:
    """It knows no fp32, no soft-capping, and no sliding window: within a level, that would differ by query."""

    name = "a cascade of PyTorch's flash attention"

    def __init__(self, shortest_level: int = SHORTEST_LEVEL) -> None:
        self._shortest_level = shortest_level

    def applies(
        self, dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device
    ) -> bool:
        half = dtype in (torch.bfloat16, torch.float16)
        fits = head_dim <= _LARGEST_HEAD and head_dim % _HEAD_MULTIPLE == 0
        return device.type == "cuda" and half and fits and softcap is None and not windowed

    def missing(self) -> str:
        if not torch.backends.cuda.is_flash_attention_available():
            return "this PyTorch was built without it"
        if not find_spec("triton"):
            return "triton, which compiles its merge, is not installed"
        there = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
        return "" if there else "it needs a GPU of compute capability 8.0"

    def lay_out(
        self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int = 0, rows: IntArray | None = None
    ) -> Cascade:
        assert not window, window
        return cascade(nodes, device, self._shortest_level, rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Cascade, scale: float, softcap: float | None) -> Tensor:
        return _CascadeAttention.apply(q, k, v.contiguous(), layout, scale)


class _CascadeAttention(torch.autograd.Function):
    """q [Q, H, D], k and v [T, K, D] -> [Q, H, D]; scale: of the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, calls: Cascade, scale: float) -> Tensor:
        on_itself, *levels = calls
        out, lse = _forward(on_itself, q, k, v, scale)
        merged = out.float() if len(levels) > 1 else out  # one merge may round at once
        merge_into = _merge_on(out.device.type)
        for call in levels:
            here = merged[call.rows], lse[:, call.rows]
            merge_into(*here, *_forward(call, q, k, v, scale))
            if not isinstance(call.rows, slice):  # then these were copies
                merged[call.rows], lse[:, call.rows] = here
        out = merged.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.constants = (calls, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        calls, scale = ctx.constants
        on_itself, *levels = calls
        grad_q, grad_k, grad_v = _backward(on_itself, grad_out, ctx.saved_tensors, scale)
        _, k, v, *_ = ctx.saved_tensors
        if isinstance(on_itself.keys, Tensor):
            grad_k, grad_v = (_summed(grad, on_itself.keys, len(k)) for grad in (grad_k, grad_v))
        total = grad_q.float() if len(levels) > 1 else grad_q  # two summands are added in fp32 anyway
        for call in levels:
            share_q, share_k, share_v = _backward(call, grad_out, ctx.saved_tensors, scale)
            total[call.rows] += share_q
            grad_k[call.keys] += share_k
            grad_v[call.keys] += share_v
        return total.to(grad_q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _summed(shares: Tensor, keys: Tensor, tokens: int) -> Tensor:
    """fp32 [tokens, K, D]: the sum of every key's shares, which this operator adds in their order."""
    total = torch.zeros(tokens, *shares.shape[1:], dtype=torch.float32, device=shares.device)
    return total.index_put_((keys,), shares.float(), accumulate=True)


def _merge_on(device_type: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    if device_type != "cuda":
        return merge
    from megatron_rlpr.actor.attention.cascade_merge_kernel import fused_merge

    return fused_merge


def _forward(call: CascadeCall, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(output [rows, H, D], log-sum-exp fp32 [H, rows]) of one call; 0 and -inf for idle rows."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q[call.rows],
        k[call.keys],
        v[call.keys],
        call.query_bounds,
        call.key_bounds,
        call.longest_query,
        call.longest_keys,
        0.0,  # dropout
        call.causal,
        False,  # no debug mask
        scale=scale,
    )
    return out, lse if call.idle is None else lse.masked_fill(call.idle, -torch.inf)


def _backward(
    call: CascadeCall, grad_out: Tensor, saved: tuple[Tensor, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of call.rows of q, and of call.keys of k and v, from the merged out and lse: all of these saved."""
    q, k, v, out, lse = saved
    with _deterministic_kernels():
        return torch.ops.aten._flash_attention_backward(
            grad_out[call.rows],
            q[call.rows],
            k[call.keys],
            v[call.keys],
            out[call.rows],
            lse[:, call.rows].contiguous(),
            call.query_bounds,
            call.key_bounds,
            call.longest_query,
            call.longest_keys,
            0.0,
            call.causal,
            torch.empty(2, dtype=torch.uint64, device=q.device),  # random state of a dropout that is 0
            torch.empty(0, device=q.device),
            scale=scale,
        )


@contextmanager
def _deterministic_kernels() -> Iterator[None]:
    """PyTorch asks its global setting whether flash attention may add up gradients of queries by atomics.

    Without them each of a few workers per head sums into a buffer of its own, so the price is a few fp32 copies of the
    queries of one call while it runs. Fresh memory need not be filled: the kernels write all of it.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
