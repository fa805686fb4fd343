"""The training loss of a micro-batch: a weighted sum over wanted rows, and the statistics to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_rlpr.algorithm.kl import token_kl
from megatron_rlpr.algorithm.policy_loss import importance_weights, token_policy_loss
from megatron_rlpr.config.schema import AlgorithmConfig
from megatron_rlpr.types import FloatArray, TrainSequence, UserError

STATISTICS = ("loss", "entropy", "clipped", "kl_to_old")


@dataclass(frozen=True)
class LossTerms:
    """The coefficients of the loss (see AlgorithmConfig)."""

    clip_low: float
    clip_high: float
    dual_clip: float
    entropy_coeff: float
    kl_coef: float
    kl_type: str
    importance_cap: float = 0.0

    @staticmethod
    def of(config: AlgorithmConfig) -> LossTerms:
        """The terms a run's configuration asks for."""
        kl_coef = config.kl_loss_coef if config.use_kl_loss else 0.0
        clip = (config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_dual)
        return LossTerms(*clip, config.entropy_coeff, kl_coef, config.kl_loss_type, config.importance_cap)


@dataclass(frozen=True)
class RowValues:
    """What the loss needs per wanted row, fp32 [W]; reference log-probs with a KL loss, the engine's where known.

    They lie where the rows do.
    """

    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    reference_log_probs: torch.Tensor | None
    engine_log_probs: torch.Tensor | None = None

    @staticmethod
    def of(sequences: Sequence[TrainSequence], sequence_weights: Sequence[float]) -> RowValues:
        """Concatenate the rows of all sequences, in order."""
        return RowValues(
            torch.from_numpy(np.concatenate([s.old_log_probs for s in sequences])).float(),
            torch.from_numpy(np.concatenate([s.advantages for s in sequences])).float(),
            torch.from_numpy(np.repeat(np.asarray(sequence_weights), [s.stop - s.start for s in sequences])).float(),
            _all_or_none([s.reference_log_probs for s in sequences], "reference"),
            _all_or_none([s.engine_log_probs for s in sequences], "engine"),
        )

    def to(self, device: torch.device) -> RowValues:
        """The same on device."""
        return RowValues(*(None if x is None else x.to(device) for x in vars(self).values()))

    def select(self, index: torch.Tensor) -> RowValues:
        """The rows at index int64 [W']."""
        reference = None if self.reference_log_probs is None else self.reference_log_probs[index]
        engine = None if self.engine_log_probs is None else self.engine_log_probs[index]
        return RowValues(self.old_log_probs[index], self.advantages[index], self.weights[index], reference, engine)


def policy_gradient(rows: torch.Tensor, values: RowValues, terms: LossTerms) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss scalar and statistics [len(STATISTICS)] of rows fp32 [W, 2] (log-prob, entropy).

    loss = sum_w weight * (importance * clipped policy loss - entropy_coeff * entropy + kl_coef * kl); importance is 1
    without importance_cap, else the truncated importance weight of what the engine sampled. Statistics are sums over
    rows (the loss as it is), to be added over micro-batches and ranks.
    """
    log_probs, entropy = rows[:, 0], rows[:, 1]
    old, weights = values.old_log_probs, values.weights
    clip = (terms.clip_low, terms.clip_high, terms.dual_clip)
    token_loss, clipped = token_policy_loss(log_probs, old, values.advantages, *clip)
    if terms.importance_cap:
        if values.engine_log_probs is None:
            raise UserError(
                "algorithm.importance_cap needs the engine's log-probs of every token, and these rollouts have none: "
                "set algorithm.importance_cap=0 or replay others"
            )
        token_loss = importance_weights(old, values.engine_log_probs, terms.importance_cap) * token_loss
    token_loss = token_loss - terms.entropy_coeff * entropy
    if terms.kl_coef and values.reference_log_probs is not None:
        kl = token_kl(log_probs, values.reference_log_probs, terms.kl_type)
        token_loss = token_loss + terms.kl_coef * kl
    loss = (weights * token_loss).sum()
    kl_to_old = (old - log_probs.detach()).sum()
    return loss, torch.stack([loss.detach(), entropy.detach().sum(), clipped.sum().float(), kl_to_old])


def _all_or_none(parts: Sequence[FloatArray | None], whose: str) -> torch.Tensor | None:
    """The concatenated values, fp32; None when no sequence has them."""
    known = [part for part in parts if part is not None]
    if known and len(known) != len(parts):
        raise ValueError(f"either all sequences have {whose} log-probs or none")
    return torch.from_numpy(np.concatenate(known)).float() if known else None
