"""Norms: RMSNorm for Megatron's own layer spec, and norms behind attention and feed-forward (Gemma 2).

RMSNorm is rounded once, behind the weight, as in vLLM's kernel and Transformer Engine.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rlpr.actor.cpu import loops as cpu_loops
from megatron_rlpr.actor.cpu.kernels import cpu_kernels, rounds_bf16

_KERNEL_VECTOR = 16
"""vLLM's kernel takes whole vectors; their width depends on the processor."""


class _RmsNorm(torch.autograd.Function):
    """y = (weight + offset) * x / rms(x), computed in fp32. Saves x; what autograd would save is several times that.

    With n = x / rms(x) and g = (weight + offset) * dy:  dx = (g - n mean(g n)) / rms(x),  dweight = sum of rows dy n.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset = eps, offset
        kernels = cpu_kernels() if x.dtype == torch.float32 or rounds_bf16() else None
        if kernels is not None and not offset and x.dtype == weight.dtype and x.shape[-1] % _KERNEL_VECTOR == 0:
            rows = x.contiguous()
            out = torch.empty_like(rows)
            kernels.rms_norm(out, rows, weight, eps)
            return out
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return (x.float() * inverse_rms * (weight.float() + offset)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors
        rows, grad = x.contiguous(), grad.contiguous()
        count, width, factor = rows[..., 0].numel(), x.shape[-1], weight.float() + ctx.offset
        grad_x, of_threads = torch.empty_like(rows), torch.zeros(torch.get_num_threads(), width)
        cpu_loops.rms_norm_gradient(count, rows, grad, factor, grad_x, of_threads, width, ctx.eps)
        return grad_x, of_threads.sum(0).to(weight.dtype), None, None


class RMSNorm(torch.nn.Module):
    """Root-mean-square normalisation in fp32 (Zhang and Sennrich, 2019).

    Megatron's own unfused norm refuses sequence parallelism; this one marks its weight, so that Megatron sums its
    gradient over the tensor-parallel ranks, each of which sees only a part of the sequence. With
    layernorm_zero_centered_gamma it multiplies by 1 + weight.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.offset = 1.0 if config.layernorm_zero_centered_gamma else 0.0
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hidden_size] -> same shape and dtype."""
        if x.is_cuda:
            return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight + self.offset, self.eps)
        return _RmsNorm.apply(x, self.weight, self.eps, self.offset)


def with_post_norm(linear: type[torch.nn.Module], norm: Any) -> type[torch.nn.Module]:
    """A row-parallel linear layer that normalises its output: Megatron's layers have no place for such a norm.

    norm(config, hidden_size, eps) makes `post_layernorm`. It acts on whole hidden vectors before the residual is added:
    the linear layer has summed over the tensor-parallel ranks by then (and split the sequence, if that is parallel).
    """

    class LinearWithPostNorm(linear):  # type: ignore[misc, valid-type]
        def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config, output_size, config.layernorm_epsilon)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            output, bias = super().forward(x)
            return self.post_layernorm(output), bias

    return LinearWithPostNorm
