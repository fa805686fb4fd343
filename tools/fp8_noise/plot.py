"""Changes of the reference probability as a picture: a row per precision, a dot per response, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from megatron_rlpr.types import DoubleArray

SMALLEST, LARGEST = 1e-6, 1.0
"""Ends of the axis; what lies beyond is drawn at its end."""


def picture(changes: Mapping[str, DoubleArray]) -> Figure:
    """changes: of every precision, absolute, [responses]. The long mark is the median, the short one 99% are below."""
    dice = np.random.default_rng(0)
    figure = Figure(figsize=(8, 0.9 + 0.5 * len(changes)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(changes.values()):
        shown = np.clip(values, SMALLEST, LARGEST)
        axes.scatter(shown, row + dice.uniform(-0.25, 0.25, len(shown)), s=9, color="#4878a8", alpha=0.45, linewidths=0)
        for quantile, half in ((0.5, 0.4), (0.99, 0.2)):
            place = float(np.clip(np.quantile(values, quantile), SMALLEST, LARGEST))
            axes.vlines(place, row - half, row + half, color="#c44e52")
    axes.set(xscale="log", xlim=(SMALLEST / 1.3, LARGEST * 1.3), ylim=(len(changes) - 0.5, -0.5))
    axes.set_yticks(range(len(changes)), list(changes))
    axes.grid(axis="x", color="#dddddd")
    axes.set_title("change of the reference probability against bf16 (long mark: median, short: 99%)", fontsize=10)
    return figure
