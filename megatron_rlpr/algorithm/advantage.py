"""Advantage estimators: groups of rewards in, one advantage per response token out.

    reward of a response r = sum of its token rewards; group mean m and unbiased std s over its n responses; e = 1e-6
    grpo                 (r - m) / (s + e), 0 if s < e                    Shao et al. 2024 (DeepSeekMath)
    grpo_nostd           r - m, 0 if s < e                                Liu et al. 2025 (Dr. GRPO)
    prnostd_vrstd        w_p (pr - m_pr) + w_v (vr - m_vr) / (s_vr + e)   probability reward pr, graded reward vr
    prstd_vrstd          w_p (pr - m_pr) / (s_pr + e) + w_v (vr - m_vr) / (s_vr + e)
    rloo                 r minus the mean of the other n - 1              Ahmadian et al. 2024
    reinforce_plus_plus  discounted return-to-go, whitened over the batch Hu 2025
    remax                return-to-go minus the greedy response's reward  Li et al. 2023

All but the last two give every token of a response the same advantage. A group of one has m = 0 and s = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_rlpr.algorithm.group_statistics import FLAT_STD, group_mean_and_std
from megatron_rlpr.types import DoubleArray, FloatArray, UserError

STD_EPSILON = 1e-6
WHITEN_EPSILON = 1e-8


@dataclass(frozen=True)
class GroupRewards:
    """The rewards of one group's n responses.

    token_rewards: one array [length] per response. probability_rewards, graded_rewards: [n], the parts of a mixed
    reward. baselines: [n], reward of the greedy response to the same prompt (remax).
    """

    token_rewards: tuple[npt.NDArray[np.floating], ...]
    probability_rewards: DoubleArray | None = None
    graded_rewards: DoubleArray | None = None
    baselines: DoubleArray | None = None

    @staticmethod
    def at_the_end(
        rewards: Sequence[float] | DoubleArray,
        lengths: Sequence[int],
        probability_rewards: DoubleArray | None = None,
        graded_rewards: DoubleArray | None = None,
        baselines: DoubleArray | None = None,
    ) -> GroupRewards:
        """Rewards [n] given at the last of lengths [n] tokens (an empty response has none to carry it)."""
        tokens = []
        for reward, length in zip(rewards, lengths, strict=True):
            row = np.zeros(length, dtype=np.float64)
            row[-1:] = reward
            tokens.append(row)
        return GroupRewards(tuple(tokens), probability_rewards, graded_rewards, baselines)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each response."""
        return tuple(len(row) for row in self.token_rewards)

    @property
    def totals(self) -> DoubleArray:
        """[n] reward of each response."""
        return np.array([row.sum(dtype=np.float64) for row in self.token_rewards])


@dataclass(frozen=True)
class GroupAdvantages:
    """tokens: float32 [length] per response. std: the group's spread, as the estimator and the std filter see it."""

    tokens: tuple[FloatArray, ...]
    std: float


@dataclass(frozen=True)
class EstimatorOptions:
    """gamma: discount of the return-to-go. pr_weight, vr_weight: weights of the two parts of a mixed reward."""

    gamma: float = 1.0
    pr_weight: float = 0.5
    vr_weight: float = 1.0


Estimator = Callable[[Sequence[GroupRewards], EstimatorOptions], list[GroupAdvantages]]


def _per_group(values: Callable[[GroupRewards, EstimatorOptions], tuple[DoubleArray, float]]) -> Estimator:
    """An estimator from the (values [n], std) of one group: every token of response i gets value i."""

    def estimate(groups: Sequence[GroupRewards], options: EstimatorOptions) -> list[GroupAdvantages]:
        results = []
        for group in groups:
            of_response, std = values(group, options)
            pairs = zip(of_response, group.lengths, strict=True)
            tokens = tuple(np.full(length, value, dtype=np.float32) for value, length in pairs)
            results.append(GroupAdvantages(tokens, std))
        return results

    return estimate


def _centred(rewards: DoubleArray | None, part: str = "final") -> tuple[DoubleArray, float]:
    """rewards - mean, and std, of one group."""
    if rewards is None:
        raise ValueError(f"this estimator needs the {part} rewards of every response")
    mean, std = group_mean_and_std(rewards)
    return rewards - mean, std


@_per_group
def _grpo(group: GroupRewards, options: EstimatorOptions) -> tuple[DoubleArray, float]:
    centred, std = _centred(group.totals)
    return centred / (std + STD_EPSILON) * (std >= FLAT_STD), std


@_per_group
def _grpo_nostd(group: GroupRewards, options: EstimatorOptions) -> tuple[DoubleArray, float]:
    centred, std = _centred(group.totals)
    return centred * (std >= FLAT_STD), std


@_per_group
def _prnostd_vrstd(group: GroupRewards, options: EstimatorOptions) -> tuple[DoubleArray, float]:
    probability, _ = _centred(group.probability_rewards, "probability")
    graded, std = _centred(group.graded_rewards, "graded")
    return options.pr_weight * probability + options.vr_weight * graded / (std + STD_EPSILON), std


@_per_group
def _prstd_vrstd(group: GroupRewards, options: EstimatorOptions) -> tuple[DoubleArray, float]:
    probability, std = _centred(group.probability_rewards, "probability")
    graded, graded_std = _centred(group.graded_rewards, "graded")
    first = options.pr_weight * probability / (std + STD_EPSILON)
    return first + options.vr_weight * graded / (graded_std + STD_EPSILON), std


@_per_group
def _rloo(group: GroupRewards, options: EstimatorOptions) -> tuple[DoubleArray, float]:
    rewards, n = group.totals, len(group.totals)
    return (rewards - rewards.mean()) * n / (n - 1) if n > 1 else rewards, group_mean_and_std(rewards)[1]


def returns_to_go(token_rewards: npt.ArrayLike, gamma: float) -> DoubleArray:
    """float64 [length]: at every token, the discounted sum of the rewards from it to the end of the response."""
    rewards = np.asarray(token_rewards, dtype=np.float64)
    returns = np.zeros_like(rewards)
    running = 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * running
        returns[t] = running
    return returns


def whiten(rows: Sequence[DoubleArray]) -> list[DoubleArray]:
    """All values of rows [length_i] shifted and scaled to mean 0 and unbiased variance 1 over the whole batch."""
    values = np.concatenate(list(rows)) if rows else np.zeros(0)
    if len(values) < 2:
        return [np.zeros_like(row) for row in rows]
    scale = 1.0 / np.sqrt(values.var(ddof=1) + WHITEN_EPSILON)
    return [(row - values.mean()) * scale for row in rows]


def _reinforce_plus_plus(groups: Sequence[GroupRewards], options: EstimatorOptions) -> list[GroupAdvantages]:
    whitened = iter(whiten([returns_to_go(row, options.gamma) for group in groups for row in group.token_rewards]))
    tokens = [tuple(next(whitened).astype(np.float32) for _ in group.token_rewards) for group in groups]
    return [GroupAdvantages(t, group_mean_and_std(g.totals)[1]) for t, g in zip(tokens, groups, strict=True)]


def _remax(groups: Sequence[GroupRewards], options: EstimatorOptions) -> list[GroupAdvantages]:
    results = []
    for group in groups:
        if group.baselines is None:
            raise ValueError("remax needs the reward of the greedy response of every prompt as its baseline")
        pairs = zip(group.token_rewards, group.baselines, strict=True)
        tokens = tuple((returns_to_go(row, options.gamma) - baseline).astype(np.float32) for row, baseline in pairs)
        results.append(GroupAdvantages(tokens, group_mean_and_std(group.totals)[1]))
    return results


ADVANTAGES: dict[str, Estimator] = {
    "grpo": _grpo,
    "grpo_nostd": _grpo_nostd,
    "prnostd_vrstd": _prnostd_vrstd,
    "prstd_vrstd": _prstd_vrstd,
    "rloo": _rloo,
    "reinforce_plus_plus": _reinforce_plus_plus,
    "remax": _remax,
}

MIXED_REWARD_ESTIMATORS = ("prnostd_vrstd", "prstd_vrstd")
GROUP_ESTIMATORS = ("grpo", "grpo_nostd", "rloo", *MIXED_REWARD_ESTIMATORS)
"""Those that compare the responses of a prompt, so that there must be more than one."""


def estimate_advantages(name: str, groups: Sequence[GroupRewards], options: EstimatorOptions) -> list[GroupAdvantages]:
    """Advantages of a whole training batch by the estimator `name`, one entry per group, in order."""
    if name not in ADVANTAGES:
        raise UserError(f"algorithm.adv_estimator: {name!r} is unknown, choose one of {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name](groups, options)


def flat_share(name: str, advantages: Sequence[GroupAdvantages]) -> float | None:
    """Share of the responses whose group has no spread (std < 1e-6); None for mixed rewards, which zero no group."""
    if name in MIXED_REWARD_ESTIMATORS:
        return None
    responses = sum(len(group.tokens) for group in advantages)
    flat = sum(len(group.tokens) for group in advantages if group.std < FLAT_STD)
    return flat / responses if responses else 0.0
