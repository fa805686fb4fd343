"""RMSNorm and LayerNorm, forward and backward, in fp32 and rounded once; sums of the weight's gradient in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import as_matrix, torch_dtype
from transformer_engine_torch.quantize import DELAYED, create_empty_quantized_tensor, quantize


def emit(y: Tensor, out: Any, quantizer: Any, dtype: int | torch.dtype) -> Any:
    """y in the output's type or, with a quantizer, in FP8 of that; in out where given.

    A scale that is known beforehand lets the kernel go from fp32 to FP8; the others look at the rounded output first.
    """
    if type(quantizer).__name__ == DELAYED:
        out = create_empty_quantized_tensor(quantizer, y.shape, torch_dtype(dtype), y.device) if out is None else out
        return quantize(y, quantizer, out)
    y = y.to(torch_dtype(dtype))
    if quantizer is not None:
        return quantize(y, quantizer, out)
    return y if out is None else out.copy_(y)


def rmsnorm_fwd(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Any,
    quantizer: Any,
    out_dtype: int,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> tuple[Any, None, Tensor]:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1) + eps)
    y = wide * inverse[..., None] * (weight.float() + zero_centered_gamma)
    return emit(y, out, quantizer, out_dtype), None, inverse


def rmsnorm_bwd(
    dz: Tensor, x: Tensor, rsigma: Tensor, weight: Tensor, sm_margin: int, zero_centered_gamma: bool
) -> tuple[Tensor, Tensor]:
    inverse = rsigma.view(*x.shape[:-1], 1)
    y = x.float() * inverse
    dy = dz.float() * (weight.float() + zero_centered_gamma)
    dx = (dy - y * (dy * y).mean(-1, keepdim=True)) * inverse
    return dx.to(x.dtype), as_matrix(dz.float() * y).sum(0).to(weight.dtype)


def rmsnorm_bwd_add(
    dz: Tensor, x: Tensor, add: Tensor, rsigma: Tensor, weight: Tensor, sm_margin: int, zero_centered_gamma: bool
) -> tuple[Tensor, Tensor]:
    """The same with the residual's gradient added."""
    dx, dweight = rmsnorm_bwd(dz, x, rsigma, weight, sm_margin, zero_centered_gamma)
    return (dx.float() + add.float()).to(x.dtype), dweight


def layernorm_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Any,
    quantizer: Any,
    out_dtype: int,
    sm_margin: int,
    zero_centered_gamma: bool,
) -> tuple[Any, Tensor, Tensor]:
    wide = x.float()
    mean = wide.mean(-1)
    centred = wide - mean[..., None]
    inverse = torch.rsqrt(centred.square().mean(-1) + eps)
    y = centred * inverse[..., None] * (weight.float() + zero_centered_gamma)
    return emit(y if bias is None else y + bias.float(), out, quantizer, out_dtype), mean, inverse


def layernorm_bwd(
    dz: Tensor, x: Tensor, mu: Tensor, rsigma: Tensor, weight: Tensor, sm_margin: int, zero_centered_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inverse = rsigma.view(*x.shape[:-1], 1)
    y = (x.float() - mu.view(*x.shape[:-1], 1)) * inverse
    dy = dz.float() * (weight.float() + zero_centered_gamma)
    dx = (dy - dy.mean(-1, keepdim=True) - y * (dy * y).mean(-1, keepdim=True)) * inverse
    dweight, dbias = as_matrix(dz.float() * y).sum(0), as_matrix(dz).float().sum(0)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)
