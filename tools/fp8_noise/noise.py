"""What differs between the rewards, and between the gradients, of two precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch

from megatron_rlpr.types import DoubleArray
from tools.pr_quality.area import area_under_curve

Groups = Sequence[int]
"""How many responses every group has."""


@dataclass(frozen=True)
class Noise:
    """Of one precision against the reference.

    mean_change, change_99: of the reference probability, absolute. flips: share of pairs within a group whose order
    changes; sign_changes: share of responses whose advantage changes its sign. auc: of the reference probability as a
    judge of right answers; auc_lost: against the reference's.
    """

    mean_change: float
    change_99: float
    flips: float
    sign_changes: float
    auc: float
    auc_lost: float


def noise(found: DoubleArray, reference: DoubleArray, groups: Groups, correct: Sequence[bool]) -> Noise:
    """found, reference: probabilities [responses], nan where there is none in either."""
    usable = ~np.isnan(reference)
    change = np.abs(found - reference)[usable]
    right = np.asarray(correct)[usable]
    auc = area_under_curve(found[usable], right)
    return Noise(
        mean_change=float(change.mean()),
        change_99=float(np.quantile(change, 0.99)),
        flips=flipped_pairs(found, reference, groups),
        sign_changes=changed_signs(found, reference, groups),
        auc=auc,
        auc_lost=area_under_curve(reference[usable], right) - auc,
    )


def flipped_pairs(found: DoubleArray, reference: DoubleArray, groups: Groups) -> float:
    """Share of pairs in the same group that the two order differently; 0 when there are none."""
    pairs = [pair for members in _members(reference, groups) for pair in combinations(members, 2)]
    flips = [(found[a] - found[b]) * (reference[a] - reference[b]) < 0 for a, b in pairs]
    return float(np.mean(flips)) if flips else 0.0


def changed_signs(found: DoubleArray, reference: DoubleArray, groups: Groups) -> float:
    """Share of responses on different sides of their group's mean; 0 when no group has two."""
    changed = [
        (found[a] - found[members].mean()) * (reference[a] - reference[members].mean()) < 0
        for members in _members(reference, groups)
        for a in members
    ]
    return float(np.mean(changed)) if changed else 0.0


def compare_gradients(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Cosine of the angle between them, and how long the first is against the second."""
    product = norm = other = 0.0
    for a, b in zip(found, reference, strict=True):
        product += float((a.double() * b.double()).sum())
        norm, other = norm + float(a.double().square().sum()), other + float(b.double().square().sum())
    return product / (norm * other) ** 0.5, (norm / other) ** 0.5


def _members(reference: DoubleArray, groups: Groups) -> list[list[int]]:
    """The responses with a probability of every group that has at least two."""
    bounds = pairwise(np.cumsum([0, *groups]).tolist())
    found = ([row for row in range(start, stop) if not np.isnan(reference[row])] for start, stop in bounds)
    return [members for members in found if len(members) > 1]
