"""Changes of the reference probability as a picture: a row per precision, a dot per response, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from megatron_rlpr.types import DoubleArray

_DECADES = (-6, 0)
_LEFT, _RIGHT, _ROW, _TOP = 110, 760, 44, 34


def svg(changes: Mapping[str, DoubleArray]) -> str:
    """changes: of every precision, absolute, [responses]. The long mark is the median, the short one 99% are below."""
    bottom = _TOP + _ROW * len(changes)
    dice = np.random.default_rng(0)
    parts = []
    for decade in range(_DECADES[0], _DECADES[1] + 1):
        x = _place(10.0**decade)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**decade:g}</text>')
    for row, (name, values) in enumerate(changes.items()):
        y = _TOP + _ROW * (row + 0.5)
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        for value in values:
            parts.append(
                f'<circle cx="{_place(value):.1f}" cy="{y + dice.uniform(-11, 11):.1f}" r="1.8" fill="#4878a8" '
                'fill-opacity="0.45"/>'
            )
        for quantile, half in ((0.5, 17), (0.99, 9)):
            x = _place(float(np.quantile(values, quantile)))
            mark = f'x1="{x:.1f}" y1="{y - half:.1f}" x2="{x:.1f}" y2="{y + half:.1f}"'
            parts.append(f'<line {mark} stroke="#c44e52" stroke-width="2"/>')
    title = "change of the reference probability against bf16 (long mark: median, short: 99%)"
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="18" text-anchor="middle">{title}</text>')
    frame = f'width="{_RIGHT + 30}" height="{bottom + 30}" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>\n' + "\n".join(parts) + "\n</svg>\n"


def _place(value: float) -> float:
    low, high = _DECADES
    exponent = min(max(math.log10(value), low), high) if value > 0 else low
    return _LEFT + (exponent - low) / (high - low) * (_RIGHT - _LEFT)
