"""The gate of a feed-forward, silu(gate) * up, for Megatron's CPU layer spec."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule

from megatron_rlpr.actor.cpu import loops as cpu_loops


class _GatedSilu(torch.autograd.Function):
    """x [..., 2 f] (gate, then up) -> [..., f].

    Saves x alone and computes silu again in backward; autograd would keep it, and Megatron's own unfused gate makes a
    copy of `up` besides.  d up = dy silu(gate),  d gate = dy up silu'(gate).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        rows = x.contiguous()
        out = rows.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        cpu_loops.gated_silu(out[..., 0].numel(), rows, out, out.shape[-1])
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        rows, grad = x.contiguous(), grad.contiguous()
        grad_x = torch.empty_like(rows)
        cpu_loops.gated_silu_gradient(grad[..., 0].numel(), rows, grad, grad_x, grad.shape[-1])
        return grad_x


class GatedSilu(MegatronModule):
    """What Megatron builds where `use_te_activation_func` asks for a module instead of a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., 2 f] -> [..., f]."""
        return _GatedSilu.apply(x)
