"""Areas under the curve and their differences, with intervals from the same resamples of whole questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_rlpr.evaluation.intervals import Interval
from megatron_rlpr.types import DoubleArray
from tools.labelled_responses import LabelledRow
from tools.pr_quality.area import AllPairs, PairsWithin, interval, numbered, resampled
from tools.pr_quality.measures import MEAN_PROBABILITY

Intervals = dict[str, Interval]
"""By measure; nan where there are not both right and wrong responses."""


@dataclass(frozen=True)
class Part:
    """Some of the responses: how many, and the areas of every measure over all pairs of them."""

    responses: int
    right: int
    questions: int
    areas: Intervals


@dataclass(frozen=True)
class Quality:
    """overall: all responses; within: over pairs of responses to one question, as in the paper; categories: each alone.

    differences: the area of the mean probability minus that of every other measure, over all pairs of all responses.
    """

    overall: Part
    within: Intervals
    categories: dict[str, Part]
    differences: Intervals


def quality(
    measures: Mapping[str, DoubleArray], rows: Sequence[LabelledRow], resamples: int = 2000, seed: int = 0
) -> Quality:
    """measures: [rows] each, MEAN_PROBABILITY among them."""
    names = list(measures)
    right, questions = np.array([row.correct for row in rows]), numbered([row.question for row in rows])
    values = resampled([AllPairs(measures[name], right) for name in names], questions, resamples, seed)
    first = values[:, names.index(MEAN_PROBABILITY)]
    others = [(name, column) for name, column in zip(names, values.T, strict=True) if name != MEAN_PROBABILITY]
    within = resampled([PairsWithin(measures[name], right, questions) for name in names], questions, resamples, seed)
    members: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.category:
            members.setdefault(row.category, []).append(number)
    categories = {}
    for category, chosen in sorted(members.items()):
        its_questions = numbered(questions[chosen].tolist())
        areas = [AllPairs(measures[name][chosen], right[chosen]) for name in names]
        its_values = resampled(areas, its_questions, resamples, seed)
        categories[category] = _part(names, its_values, [rows[number] for number in chosen])
    return Quality(
        overall=_part(names, values, rows),
        within={name: interval(column) for name, column in zip(names, within.T, strict=True)},
        categories=categories,
        differences={name: interval(first - column) for name, column in others},
    )


def _part(names: Sequence[str], values: DoubleArray, rows: Sequence[LabelledRow]) -> Part:
    areas = {name: interval(column) for name, column in zip(names, values.T, strict=True)}
    return Part(len(rows), sum(row.correct for row in rows), len({row.question for row in rows}), areas)
