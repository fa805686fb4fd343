"""The gate of a feed-forward, silu(gate) * up, for Megatron's CPU layer spec."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class _GatedSilu(torch.autograd.Function):
    """x [..., 2 f] (gate, then up) -> [..., f].

    Saves x alone and computes silu again in backward; autograd would keep it, and Megatron's own unfused gate makes a copy of
    `up` besides.  d up = dy silu(gate),  d gate = dy up silu'(gate).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_x


class GatedSilu(MegatronModule):
    """What Megatron builds where `use_te_activation_func` asks for a module instead of a function."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., 2 f] -> [..., f]."""
        return _GatedSilu.apply(x)
