"""The training loss of a micro-batch: a weighted sum over wanted rows, and the statistics to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_rlpr.algorithm.kl import token_kl
from megatron_rlpr.algorithm.policy_loss import token_policy_loss
from megatron_rlpr.config import AlgorithmConfig
from megatron_rlpr.types import TrainSequence

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

    @staticmethod
    def of(config: AlgorithmConfig) -> LossTerms:
        """The terms a run's configuration asks for."""
        kl_coef = config.kl_loss_coef if config.use_kl_loss else 0.0
        return LossTerms(
            config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_dual, config.entropy_coeff, kl_coef, config.kl_loss_type
        )


@dataclass(frozen=True)
class RowValues:
    """What the loss needs per wanted row, fp32 [W]; reference log-probs only with a KL loss."""

    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    reference_log_probs: torch.Tensor | None

    @staticmethod
    def of(sequences: Sequence[TrainSequence], sequence_weights: Sequence[float]) -> RowValues:
        """Concatenate the rows of all sequences, in order."""
        references = [s.reference_log_probs for s in sequences]
        known = [r for r in references if r is not None]
        if known and len(known) != len(references):
            raise ValueError("either all sequences have reference log-probs or none")
        return RowValues(
            torch.from_numpy(np.concatenate([s.old_log_probs for s in sequences])).float(),
            torch.from_numpy(np.concatenate([s.advantages for s in sequences])).float(),
            torch.from_numpy(np.repeat(np.asarray(sequence_weights), [s.stop - s.start for s in sequences])).float(),
            torch.from_numpy(np.concatenate(known)).float() if known else None,
        )

    def select(self, index: torch.Tensor) -> RowValues:
        """The rows at index int64 [W']."""
        reference = None if self.reference_log_probs is None else self.reference_log_probs[index]
        return RowValues(self.old_log_probs[index], self.advantages[index], self.weights[index], reference)


def policy_gradient(rows: torch.Tensor, values: RowValues, terms: LossTerms) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss scalar and statistics [len(STATISTICS)] of rows fp32 [W, 2] (log-prob, entropy).

    loss = sum_w weight * (clipped policy loss - entropy_coeff * entropy + kl_coef * kl). Statistics are sums over rows
    (the loss as it is), to be added over micro-batches and ranks.
    """
    where = rows.device
    log_probs, entropy = rows[:, 0], rows[:, 1]
    old, weights = values.old_log_probs.to(where), values.weights.to(where)
    token_loss, clipped = token_policy_loss(log_probs, old, values.advantages.to(where), terms.clip_low, terms.clip_high, terms.dual_clip)
    token_loss = token_loss - terms.entropy_coeff * entropy
    if terms.kl_coef and values.reference_log_probs is not None:
        token_loss = token_loss + terms.kl_coef * token_kl(log_probs, values.reference_log_probs.to(where), terms.kl_type)
    loss = (weights * token_loss).sum()
    statistics = torch.stack([loss.detach(), entropy.detach().sum(), clipped.sum().float(), (old - log_probs.detach()).sum()])
    return loss, statistics
