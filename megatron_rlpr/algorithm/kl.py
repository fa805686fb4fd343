"""KL divergence to the reference policy: per-token estimators, the coefficient's controller, and KL inside the reward.

The estimators are those of J. Schulman, "Approximating KL Divergence" (2020): k1 is "kl", k2 "mse", k3 "low_var_kl".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_rlpr.types import FloatArray, UserError

KL_KINDS = ("kl", "abs", "mse", "low_var_kl")
LOW_VARIANCE_BOUND = 10.0


def token_kl(log_probs: torch.Tensor, reference_log_probs: torch.Tensor, kind: str) -> torch.Tensor:
    """KL estimate of every sampled token, the inputs' shape; the gradient flows through log_probs.

    With d = reference - log_prob: kl: -d; abs: |d|; mse: d^2 / 2; low_var_kl: exp(d) - d - 1, clamped to +-10.
    """
    difference = reference_log_probs - log_probs
    match kind:
        case "kl":
            return -difference
        case "abs":
            return difference.abs()
        case "mse":
            return 0.5 * difference.square()
        case "low_var_kl":
            return (difference.exp() - difference - 1.0).clamp(-LOW_VARIANCE_BOUND, LOW_VARIANCE_BOUND)
    raise UserError(f"algorithm.kl_loss_type: {kind!r} is unknown, choose one of {', '.join(KL_KINDS)}")


def penalised_token_rewards(
    reward: float, log_probs: FloatArray, reference_log_probs: FloatArray, coefficient: float, kind: str
) -> tuple[FloatArray, float]:
    """Token rewards float32 [length] of one response with the KL inside the reward, and its mean token KL.

    Every token pays coefficient * KL; the response's reward is added at the last token. Both log-probs: [length].
    """
    own, reference = (torch.from_numpy(np.asarray(rows)) for rows in (log_probs, reference_log_probs))
    kl = token_kl(own, reference, kind).numpy()
    rewards = (-coefficient * kl).astype(np.float32)
    if len(rewards) == 0:
        return rewards, 0.0
    rewards[-1] += reward
    return rewards, float(kl.mean())


class KLController:
    """The coefficient of the KL in the reward over the run: the same all along, unless a controller below moves it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, response_kls: Sequence[float]) -> None:
        """After a step: the mean token KL of every response of its batch."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; a coefficient that never moves comes from the configuration."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.value = state.get("value", self.value)


class AdaptiveKL(KLController):
    """Steers the KL towards a target (Ziegler et al. 2019, section 2.2).

    After a batch: value *= 1 + clip(kl / target - 1, -0.2, 0.2) * responses / horizon.
    """

    def __init__(self, value: float, target: float, horizon: float) -> None:
        super().__init__(value)
        self._target = target
        self._horizon = horizon

    def update(self, response_kls: Sequence[float]) -> None:
        """Move the coefficient by the batch's mean KL."""
        if not response_kls:
            return
        error = np.clip(np.mean(response_kls) / self._target - 1.0, -0.2, 0.2)
        self.value *= 1.0 + float(error) * len(response_kls) / self._horizon

    def state_dict(self) -> dict[str, float]:
        """The coefficient as it is now."""
        return {"value": self.value}
