"""The clipped policy-gradient loss of tokens (PPO, Schulman et al. 2017; two clips as in DAPO, Yu et al. 2025)."""

from __future__ import annotations

import torch


def importance_weights(old_log_probs: torch.Tensor, engine_log_probs: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(old_log_prob - engine_log_prob), cap), fp32 [rows], without gradient: truncated importance sampling.

    The engine sampled from its own distribution: that of older weights, or of other kernels. The weight makes the
    gradient that of samples from the old policy; the cap bounds its variance (Yao et al. 2025).

    old_log_probs, engine_log_probs: [rows]; cap > 0.
    """
    return torch.exp(old_log_probs - engine_log_probs).clamp(max=cap).detach()


def token_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss fp32 [rows] and whether the clip decided it, bool [rows].

    With ratio = exp(log_prob - old_log_prob): loss = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)).
    Where dual_clip is not 0, the loss of a negative advantage is at most -A * dual_clip (Ye et al. 2020). The ratio
    itself is not clamped.

    log_probs, old_log_probs, advantages: [rows]; only log_probs carries a gradient.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    plain = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(plain, clipped)
    if dual_clip:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, clipped > plain
