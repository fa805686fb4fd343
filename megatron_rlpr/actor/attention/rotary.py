"""Rotary position embedding at explicit positions (a token's depth in its tree, not its row)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from megatron_rlpr.actor.cpu import loops as cpu_loops
from megatron_rlpr.weights.shape import ModelShape


def inverse_frequencies(shape: ModelShape) -> Tensor:
    """float32 [head_dim / 2]; the Llama 3.1 scaling is applied where the checkpoint asks for it.

    Llama 3.1: wavelengths beyond original_max / low_freq_factor are stretched by `factor`, those shorter than
    original_max / high_freq_factor are kept, and between the two the frequency is interpolated linearly.
    """
    exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponent)
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    kept_share = ((scaling.original_max_position_embeddings / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return kept_share * frequencies + (1 - kept_share) * frequencies / factor


@dataclass(frozen=True)
class Rotary:
    """The angles of T tokens: cos and sin, each [T, 1, head_dim], in the compute dtype."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rotary:
        """For positions int64 [T]; the angles are computed in fp32."""
        angles = positions.to(torch.float32)[:, None] * frequencies.to(positions.device)[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """x [T, heads, head_dim], rotated (halves paired, as Llama and Qwen do); on a CPU by a compiled loop."""
        if not x.is_cuda:
            return _Rotation.apply(x, self.table)
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * self.cos, torch.cat((-second, first), dim=-1), self.sin)

    @cached_property
    def table(self) -> Tensor:
        """[T, head_dim]: cosines of the head_dim / 2 angles, then sines."""
        half = self.cos.shape[-1] // 2
        return torch.cat((self.cos[:, 0, :half], self.sin[:, 0, :half]), dim=-1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return rotated(x, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return rotated(grad, table, back=True), None


def rotated(x: Tensor, table: Tensor, back: bool = False) -> Tensor:
    """x [T, heads, D] rotated by its rows' angles (`Rotary.table`): contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype)
    tokens, heads, dim = x.shape
    if x.stride(2) != 1:
        x = x.contiguous()
    assert table.dtype == x.dtype, table.dtype
    sign = -1.0 if back else 1.0
    cpu_loops.rotate(tokens, out, x.data_ptr(), table, x.stride(0), x.stride(1), heads, dim // 2, sign)
    return out
