"""The learning rate as a function of the step number alone, so that a resumed run continues exactly."""

from __future__ import annotations

import math

from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import UserError


def learning_rate(actor: ActorConfig, step: int, total_steps: int) -> float:
    """The learning rate of a training step, counted from 1."""
    return actor.lr * multiplier(
        step - 1,
        warmup_steps=actor.lr_warmup_steps,
        total_steps=total_steps,
        style=actor.lr_decay_style,
        min_ratio=actor.min_lr / actor.lr if actor.lr else 0.0,
    )


def multiplier(
    step: int, *, warmup_steps: int = 0, total_steps: int = 0, style: str = "constant", min_ratio: float = 0.0
) -> float:
    """Factor on the peak learning rate at `step` (0 for the first training step).

    Warm-up: step k of the first warmup_steps runs at (k + 1) / warmup_steps, so no step runs at 0 and, without a
    warm-up, the first step runs at the full rate. After it the rate stays ("constant") or falls along a line or half a
    cosine to min_ratio, which the last of total_steps reaches; later steps keep min_ratio.

    min_ratio: lowest learning rate divided by the peak one. total_steps is needed for the decaying styles.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if style == "constant":
        return 1.0
    if style not in ("linear", "cosine"):
        raise UserError(f"actor.lr_decay_style: {style!r} is unknown, choose constant, linear or cosine")
    if total_steps <= warmup_steps:
        raise UserError(
            f"actor.lr_decay_style={style} needs more training steps than actor.lr_warmup_steps={warmup_steps}, the "
            f"run has {total_steps}"
        )
    peak = max(warmup_steps, 1)  # number of the step (from 1) that runs at the full rate
    progress = min(1.0, (step + 1 - peak) / max(total_steps - peak, 1))
    remaining = 1.0 - progress if style == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_ratio + (1.0 - min_ratio) * remaining
