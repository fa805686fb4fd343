"""Rotary position embedding at explicit positions (a token's depth in its tree, not its row)."""

from __future__ import annotations

import math

import torch

from megatron_rlpr.weights.shape import ModelShape


def inverse_frequencies(shape: ModelShape) -> torch.Tensor:
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


def cos_sin(
    positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables for positions int64 [T]: cos and sin, each [T, 1, 1, head_dim]; angles in fp32, result in dtype."""
    angles = positions.to(torch.float32)[:, None] * frequencies.to(positions.device)[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, 1, heads, head_dim] by the tables' angles (halves paired, as Llama and Qwen do)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)
