"""Means of held-out measures with 95% confidence intervals, and paired comparisons of two policies on the same prompts.

One value is one prompt: samples of a prompt are not independent, so they are averaged before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import mpmath
import numpy as np

from megatron_rlpr.types import DoubleArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% confidence interval; low and high are infinite where one value cannot tell."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of the values with its 95% interval.

    Values that are all 0 or 1 get Wilson's score interval (E. B. Wilson, 1927), others Student's t interval. Raises
    ValueError for no values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) and np.isin(x, (0.0, 1.0)).all():
        mean = float(x.mean())
        return Interval(mean, *_wilson(mean, len(x)))
    return _student(x)


def share_interval(values: Sequence[float]) -> Interval:
    """`mean_interval` of values between 0 and 1, cut where no mean of such values can lie.

    With one answer a prompt that is Wilson's interval. With several, a value is the share of a prompt's answers that
    are right, and Student's interval over prompts is the one clustered by prompt.
    """
    interval = mean_interval(values)
    return Interval(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0))


def mean_of_independent(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent means, with the interval that follows from theirs.

    G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 2008:
    distances to the ends add up like standard errors, so that Wilson's intervals stay as careful as they are. Raises
    ValueError for none.
    """
    if not intervals:
        raise ValueError("a mean of means needs at least one")
    n = len(intervals)
    mean = sum(one.mean for one in intervals) / n
    below = math.sqrt(sum((one.mean - one.low) ** 2 for one in intervals)) / n
    above = math.sqrt(sum((one.high - one.mean) ** 2 for one in intervals)) / n
    return Interval(mean, mean - below, mean + above)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of after - before over the same items in the same order, with Student's t interval of the differences.

    Pairing removes the spread between easy and hard prompts. Raises ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(
            f"a paired difference needs the same items twice: {len(before)} values before, {len(after)} after"
        )
    return _student(np.subtract(after, before, dtype=np.float64))


def _wilson(mean: float, n: int) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _student(x: DoubleArray) -> Interval:
    n = len(x)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    variance_of_mean = float(n / (n - 1) * np.square(x - mean).sum() / n**2)
    half = _student_quantile(n - 1) * math.sqrt(variance_of_mean)
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=1024)
def _student_quantile(degrees: int) -> float:
    """t with P(|T| <= t) = 0.95: the root of the regularised incomplete beta I_{v/(v+t^2)}(v/2, 1/2) = 0.05."""

    def outside(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True) - (1 - CONFIDENCE)

    return float(mpmath.findroot(outside, (1.9, 13.0), solver="anderson"))
