"""Rotary position embedding at explicit positions (a token's depth in its tree, not its row)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
        """x [T, heads, head_dim], rotated (halves paired, as Llama and Qwen do)."""
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * self.cos, torch.cat((-second, first), dim=-1), self.sin)

    @cached_property
    def table(self) -> Tensor:
        """[T, head_dim]: cosines of the head_dim / 2 angles, then sines."""
        half = self.cos.shape[-1] // 2
        return torch.cat((self.cos[:, 0, :half], self.sin[:, 0, :half]), dim=-1)
