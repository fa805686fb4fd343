"""The figures as a picture: areas, what the mean probability has over the others, and categories."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_rlpr.evaluation.intervals import Interval
from tools.pr_quality.measures import MEAN_PROBABILITY
from tools.pr_quality.quality import Quality
from tools.pr_quality.table import BRIEF

_COLOURS = ("#4878a8", "#e1812c", "#6a9f58", "#967662")


def picture(found: Quality, title: str) -> Figure:
    """Bars are 95% intervals."""
    categories = found.categories
    height = 1.6 + 0.34 * max(len(found.overall.areas), 1.6 * len(categories))
    figure = Figure(figsize=(15 if categories else 10, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, 3 if categories else 2, squeeze=False)[0]
    names = list(found.overall.areas)
    left = [found.overall.areas[name] for name in names]
    _dots(panels[0], names, left, -0.12, _COLOURS[0], "all pairs")
    _dots(panels[0], names, [found.within[name] for name in names], 0.12, _COLOURS[1], "pairs within a question")
    _finish(panels[0], names, "AUC", 0.5)
    others = list(found.differences)
    _dots(panels[1], others, list(found.differences.values()), 0, _COLOURS[0], "")
    _finish(panels[1], others, f"AUC of {MEAN_PROBABILITY} minus that of", 0)
    if categories:
        for number, name in enumerate(BRIEF):
            values = [part.areas[name] for part in categories.values()]
            _dots(panels[2], list(categories), values, 0.18 * (number - 1.5), _COLOURS[number], name)
        _finish(panels[2], [f"{name} ({part.responses})" for name, part in categories.items()], "AUC, all pairs", 0.5)
    return figure


def _dots(axes: Axes, names: Sequence[str], values: Sequence[Interval], shift: float, colour: str, label: str) -> None:
    places = [place for place, value in enumerate(values) if not math.isnan(value.mean)]
    if not places:
        return
    means = [values[place].mean for place in places]
    below = [value.mean - value.low if not math.isnan(value.low) else 0.0 for value in (values[p] for p in places)]
    above = [value.high - value.mean if not math.isnan(value.high) else 0.0 for value in (values[p] for p in places)]
    errors = ([max(x, 0.0) for x in below], [max(x, 0.0) for x in above])
    rows = [place + shift for place in places]
    axes.errorbar(means, rows, xerr=errors, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1, label=label)


def _finish(axes: Axes, names: Sequence[str], label: str, reference: float) -> None:
    axes.axvline(reference, color="#999999", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#eeeeee")
    if len(axes.containers) > 1:
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
