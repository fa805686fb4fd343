"""Multi-tensor functions of the optimizer: (chunk size, overflow flag, lists of tensors, ...), in place, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import e8m0_of, encode, scale_of

Lists = Sequence[Sequence[Tensor]]


def multi_tensor_scale(chunk: int, flag: Tensor | None, lists: Lists, scale: float | Tensor) -> None:
    """target = source * scale; a source that is not finite sets the flag."""
    for source, target in zip(*lists, strict=True):
        if flag is not None and not torch.isfinite(source).all():
            flag.fill_(1)
        target.copy_(source.float() * scale)


multi_tensor_scale_tensor = multi_tensor_scale


def multi_tensor_l2norm(
    chunk: int, flag: Tensor | None, lists: Lists, per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """The norm of all [1], and of each where asked."""
    norms = torch.stack([t.float().norm() for t in lists[0]]) if lists[0] else torch.zeros(1)
    return norms.norm().reshape(1), norms if per_tensor else torch.empty(0)


def multi_tensor_unscale_l2norm(
    chunk: int, flag: Tensor | None, lists: Lists, inverse_scale: Tensor, per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    return multi_tensor_l2norm(chunk, flag, [[t.float() * inverse_scale for t in lists[0]]], per_tensor)


def multi_tensor_adam(chunk: int, flag: Tensor | None, lists: Lists, *options: Any) -> None:
    """lists: gradients, parameters, both moments and, where there are, fp32 master weights."""
    if flag is not None and bool(flag):
        return
    for gradient, parameter, first, second, *master in zip(*lists, strict=True):
        weight = master[0] if master else parameter.float()
        _adam(gradient, weight, first, second, *options)
        parameter.copy_(weight)


def multi_tensor_adam_fp8(chunk: int, flag: Tensor | None, lists: Lists, *options: Any) -> None:
    """Parameters are FP8 bytes; their amax, scale and inverse scale come with them. The last option is their type."""
    *of_adam, fp8 = options
    for gradient, parameter, first, second, weight, scale, amax, scale_inv in zip(*lists, strict=True):
        _adam(gradient, weight, first, second, *of_adam)
        amax.copy_(torch.maximum(amax, weight.abs().amax()))
        parameter.copy_(encode(weight * scale, fp8).view(parameter.shape))
        scale_inv.copy_(1.0 / scale)


def _adam(
    gradient: Tensor,
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    decay: float,
) -> None:
    """One step on an fp32 weight and its moments, in place; decoupled weight decay is AdamW's."""
    gradient = gradient.float() if decoupled else gradient.float() + decay * weight
    mean = beta1 * first.float() + (1 - beta1) * gradient
    square = beta2 * second.float() + (1 - beta2) * gradient * gradient
    first.copy_(mean)  # which may round them
    second.copy_(square)
    of_first, of_second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    update = (mean / of_first) / ((square / of_second).sqrt() + eps)
    weight.sub_(lr * (update + decay * weight if decoupled else update))


def multi_tensor_compute_scale_and_scale_inv(
    chunk: int, flag: Tensor | None, lists: Lists, top: float, power_of_two: bool, epsilon: float
) -> None:
    for amax, scale, scale_inv in zip(*lists, strict=True):
        scale.copy_(scale_of(amax, top, epsilon, power_of_two))
        scale_inv.copy_(1.0 / scale)


def multi_tensor_compute_scale_inv_e8m0(chunk: int, flag: Tensor | None, lists: Lists) -> None:
    for amax, scale_inv in zip(*lists, strict=True):
        scale_inv.copy_(e8m0_of(amax, 448.0))
