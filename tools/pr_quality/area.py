"""The area under the ROC curve: the probability that a right response scores higher than a wrong one, ties half
(Mann and Whitney, 1947).

Responses to one question are not independent, so intervals come from resampling whole questions (the cluster bootstrap
of Field and Welsh, 2007): a question that is drawn k times counts as k questions with the same responses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_rlpr.evaluation.intervals import CONFIDENCE, Interval
from megatron_rlpr.types import DoubleArray, IntArray

_CELLS = 4_000_000
"""Most entries of a piece of the matrix [resamples, responses]: bounds the memory, whatever the file's length."""

Labels = npt.NDArray[np.bool_]


class Areas(Protocol):
    """The area of one measure, for any weights of the responses."""

    def of(self, weights: DoubleArray) -> DoubleArray:
        """weights [B, N] -> areas [B]; nan where there are not both right and wrong responses."""


class AllPairs:
    """Over all pairs of a right and a wrong response. scores, right: [N]; the scores are numbers."""

    def __init__(self, scores: DoubleArray, right: Labels) -> None:
        self._order = np.argsort(scores, kind="stable")
        self._right = right[self._order].astype(np.float64)
        ordered = scores[self._order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)
        self._ties = starts

    def of(self, weights: DoubleArray) -> DoubleArray:
        """See `Areas`."""
        if not len(self._order):
            return np.full(len(weights), np.nan)
        ordered = weights[:, self._order]
        right = np.add.reduceat(ordered * self._right, self._ties, axis=1)
        wrong = np.add.reduceat(ordered * (1 - self._right), self._ties, axis=1)
        below = np.cumsum(wrong, axis=1) - wrong / 2
        return _ratio((right * below).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1))


class PairsWithin:
    """Over pairs of a right and a wrong response to the same question. questions: [N], a number for each."""

    def __init__(self, scores: DoubleArray, right: Labels, questions: IntArray) -> None:
        members: dict[int, tuple[list[int], list[int]]] = {}
        for row, question in enumerate(questions.tolist()):
            members.setdefault(question, ([], []))[0 if right[row] else 1].append(row)
        pairs = [(a, b) for above, below in members.values() for a in above for b in below]
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self._first = first
        self._won = (scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second])

    def of(self, weights: DoubleArray) -> DoubleArray:
        """See `Areas`. Both responses of a pair have their question's weight."""
        ordered = weights[:, self._first]
        return _ratio(ordered @ self._won, ordered.sum(axis=1))


def area_under_curve(scores: DoubleArray, right: Labels) -> float:
    """Of all pairs; nan when there are not both right and wrong responses."""
    return float(AllPairs(scores, right).of(np.ones((1, len(scores))))[0])


def numbered(values: Sequence[Hashable]) -> IntArray:
    """Equal values get equal numbers, from 0 in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def resampled(areas: Sequence[Areas], questions: IntArray, resamples: int, seed: int) -> DoubleArray:
    """Areas [1 + resamples, len(areas)]: first of the responses themselves, then of resampled questions.

    All areas see the same resamples, so differences of columns are paired. questions: [N], `numbered`.
    """
    weights = (weights for weights in _weights(questions, resamples, seed))
    return np.concatenate([np.stack([area.of(piece) for area in areas], axis=1) for piece in weights])


def interval(values: DoubleArray) -> Interval:
    """The first value with the percentile interval of the others; nan where fewer than half of those are numbers."""
    rest = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or 2 * len(rest) < len(values) - 1:
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(rest, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(values[0]), float(low), float(high))


def _weights(questions: IntArray, resamples: int, seed: int) -> Iterator[DoubleArray]:
    yield np.ones((1, len(questions)))
    count = int(questions.max()) + 1
    dice = np.random.default_rng(seed)
    at_once = max(1, _CELLS // len(questions))
    for start in range(0, resamples, at_once):
        drawn = dice.multinomial(count, np.full(count, 1 / count), size=min(at_once, resamples - start))
        yield drawn[:, questions].astype(np.float64)


def _ratio(numerator: DoubleArray, denominator: DoubleArray) -> DoubleArray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
