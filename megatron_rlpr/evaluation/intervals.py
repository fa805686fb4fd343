"""Means of held-out measures with 95% confidence intervals, and paired comparisons of two policies on the same prompts.

Samples of one prompt are not independent: pass `clusters` (one label per value) and every interval is made from the
clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import mpmath
import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% confidence interval; n counts the values. low/high are infinite where one value
    cannot tell."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True when the interval lies wholly above or wholly below 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}] (n={self.n})"


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """The mean of the values with its 95% interval.

    Values that are all 0 or 1 get Wilson's score interval (E. B. Wilson, 1927); with clusters it uses the effective
    sample size p (1 - p) / variance of the mean (E. L. Korn and B. I. Graubard, 1998). Other values get Student's t
    interval, with the cluster-robust variance of a mean when there are clusters. Raises ValueError for no values or a
    label count that differs.
    """
    x, labels = _checked(values, clusters)
    mean = float(x.mean())
    variance, groups = _variance_of_mean(x, labels)
    if np.isin(x, (0.0, 1.0)).all():
        low, high = _wilson(mean, _effective_size(mean, variance, len(x), groups))
        return Interval(mean, low, high, len(x))
    return _student(mean, variance, groups, len(x))


def paired_difference(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Interval:
    """The mean of after - before over the same items in the same order, with Student's t interval of the differences.

    Pairing removes the spread between easy and hard prompts. Raises ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(
            f"a paired difference needs the same items twice: {len(before)} values before, {len(after)} after"
        )
    x, labels = _checked(np.subtract(after, before, dtype=np.float64).tolist(), clusters)
    variance, groups = _variance_of_mean(x, labels)
    return _student(float(x.mean()), variance, groups, len(x))


def _checked(
    values: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """The values as float64 [n] and a cluster number for each, intp [n]."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError("an interval needs at least one value")
    if clusters is None:
        return x, np.arange(len(x))
    if len(clusters) != len(x):
        raise ValueError(f"one cluster label per value: {len(x)} values, {len(clusters)} labels")
    numbers: dict[Hashable, int] = {}
    return x, np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.intp)


def _variance_of_mean(x: npt.NDArray[np.float64], labels: npt.NDArray[np.intp]) -> tuple[float, int]:
    """Cluster-robust variance of the mean, and the number of clusters; with one value per cluster it is s^2 / n."""
    groups = int(labels.max()) + 1
    if groups == 1:
        return math.inf, 1
    sums = np.bincount(labels, weights=x - x.mean())
    return float(groups / (groups - 1) * np.square(sums).sum() / len(x) ** 2), groups


def _effective_size(mean: float, variance: float, n: int, groups: int) -> float:
    """How many independent 0/1 values tell as much; between the number of clusters that certainly are and n."""
    if groups == n:
        return float(n)
    if variance == 0.0 or math.isinf(variance):
        return float(groups)
    return min(float(n), max(1.0, mean * (1 - mean) / variance))


def _wilson(mean: float, n: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _student(mean: float, variance: float, groups: int, n: int) -> Interval:
    if groups == 1:
        return Interval(mean, -math.inf, math.inf, n)
    half = _student_quantile(groups - 1) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, n)


@lru_cache(maxsize=1024)
def _student_quantile(degrees: int) -> float:
    """t with P(|T| <= t) = 0.95: the root of the regularised incomplete beta I_{v/(v+t^2)}(v/2, 1/2) = 0.05."""

    def outside(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True) - (1 - CONFIDENCE)

    return float(mpmath.findroot(outside, (1.9, 13.0), solver="anderson"))
