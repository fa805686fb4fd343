"""The curves of all runs on one axis, as plotly's figures; and the phases of a step as stacked bars."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from megatron_rlpr.tracking.metric_names import meaning
from tools.report.run_record import RunRecord

_COLOURS = qualitative.D3
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MOST_BARS = 100
_NOT_DRAWN = ("step", "epoch", "time/*")
PHASES = ("rollout", "score", "reward", "update", "hand_over")


@dataclass(frozen=True)
class Chart:
    """One set of axes. metrics: names, * stands for anything."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    log: bool = False


_REWARDS = ("mean", "reference_probability", "base_probability", "format", "repetition")
_LENGTHS = ("response_length/mean", "think_length/mean", "answer_length/mean")
CHARTS = (
    Chart("Reward and its parts", tuple(f"reward/{part}" for part in _REWARDS)),
    Chart("Accuracy", ("val/*/accuracy", "reward/accuracy"), "share of responses"),
    Chart("Held-out reward and its parts", ("val/*/reward", "val/*/reference_probability", "val/*/format")),
    Chart("Length: response, reasoning, answer", _LENGTHS, "tokens"),
    Chart("Entropy", ("actor/entropy",), "nats"),
    Chart("Filter: threshold", ("filter/threshold",), "standard deviation"),
    Chart("Filter: kept share", ("filter/kept_fraction",), "share of groups"),
    Chart("Log-prob gap of engine and actor", ("rollout/log_prob_gap", "rollout/log_prob_gap_max"), "nats", log=True),
    Chart("Clip fraction", ("actor/clip_fraction",), "share of tokens"),
    Chart("Gradient norm", ("actor/grad_norm",), "L2", log=True),
    Chart("Speed", ("tokens/s", "tokens/s_rollout", "tokens/s_update"), "tokens/s"),
)  # fmt: skip


def charts(runs: Sequence[RunRecord]) -> tuple[list[dict[str, Any]], list[str]]:
    """(what is drawn: title, meaning of its metrics, plotly's figure; titles of what no run has numbers for)."""
    made = [(chart.title, _meaning(chart, runs), _curves(chart, runs)) for chart in CHARTS]
    made.append(("Seconds of a step by phase", "", _phases(runs)))
    drawn = [_plain(title, meaning, figure) for title, meaning, figure in made if figure.data]
    return drawn, [title for title, _, figure in made if not figure.data]


def other_charts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A chart for every metric that has none of its own."""
    known = [*_NOT_DRAWN, *(pattern for chart in CHARTS for pattern in chart.metrics)]
    names = dict.fromkeys(name for run in runs for name in run.metric_names)
    others = [
        Chart(name, (glob.escape(name),)) for name in names if not any(fnmatchcase(name, pattern) for pattern in known)
    ]
    return [_plain(chart.title, _meaning(chart, runs), _curves(chart, runs)) for chart in others]


def _plain(title: str, meaning: str, figure: go.Figure) -> dict[str, Any]:
    content = figure.to_plotly_json()
    return {"title": title, "meaning": meaning, "data": list(content["data"]), "layout": content["layout"]}


def _names(chart: Chart, runs: Sequence[RunRecord]) -> list[str]:
    """The chart's metrics that some run has; an accuracy of 0 throughout means that nobody graded in training."""
    there = dict.fromkeys(name for run in runs for name in run.metric_names)
    found = [name for pattern in chart.metrics for name in there if fnmatchcase(name, pattern)]
    return [name for name in found if name != "reward/accuracy" or any(any(run.metric(name)[1]) for run in runs)]


def _meaning(chart: Chart, runs: Sequence[RunRecord]) -> str:
    """Every meaning once: validation sets share theirs."""
    known = dict.fromkeys(
        (name.split("/")[-1] if name.startswith("val") else name, meaning(name)) for name in _names(chart, runs)
    )
    return "; ".join(f"{name}: {text}" for name, text in known if text)


def _curves(chart: Chart, runs: Sequence[RunRecord]) -> go.Figure:
    """A line per run and metric. One run: a colour per metric; several: a colour per run, a dash per metric."""
    figure = go.Figure()
    for number, run in enumerate(runs):
        for place, name in enumerate(_names(chart, runs)):
            steps, values = run.metric(name)
            if not steps:
                continue
            several = len(runs) > 1
            line = {
                "color": _COLOURS[(number if several else place) % len(_COLOURS)],
                "dash": _DASHES[place % len(_DASHES)] if several else "solid",
                "width": 1.6,
            }
            mode = "lines+markers" if len(steps) < 10 else "lines"
            label = escape(f"{run.name}: {name}" if several else name)
            figure.add_trace(go.Scatter(x=steps, y=values, name=label, mode=mode, line=line))
    positive = all(value > 0 for trace in figure.data for value in trace.y)
    figure.update_yaxes(title_text=chart.unit, type="log" if chart.log and positive else "linear")
    figure.update_xaxes(title={"text": "step", "standoff": 4})
    return _laid_out(figure)


def _phases(runs: Sequence[RunRecord]) -> go.Figure:
    """A row of bars per run, at most _MOST_BARS: the mean of several steps where there are more."""
    timed = [run for run in runs if run.metric("time/step")[0]]
    if not timed:
        return go.Figure()
    titles = [escape(f"{run.name}{_bin_note(len(run.metric('time/step')[0]))}") for run in timed]
    gap = min(0.12, 0.5 / len(timed))
    figure = make_subplots(rows=len(timed), shared_xaxes=True, subplot_titles=titles, vertical_spacing=gap)
    for row, run in enumerate(timed, 1):
        steps = run.metric("time/step")[0]
        seconds = {phase: [run.steps[step].get(f"time/{phase}", 0.0) for step in steps] for phase in PHASES}
        whole = [run.steps[step]["time/step"] for step in steps]
        seconds["other"] = [max(a - sum(b), 0.0) for a, *b in zip(whole, *seconds.values(), strict=True)]
        width = _bin(len(steps))
        for place, (phase, values) in enumerate(seconds.items()):
            bars = [float(np.mean(values[first : first + width])) for first in range(0, len(values), width)]
            style = {"name": phase, "marker_color": _COLOURS[place], "legendgroup": phase, "showlegend": row == 1}
            figure.add_trace(go.Bar(x=steps[::width], y=bars, **style), row=row, col=1)
    figure.update_yaxes(title_text="s")
    figure.update_xaxes(title={"text": "step", "standoff": 4}, row=len(timed), col=1)
    return _laid_out(figure, barmode="stack", height=140 + 180 * len(timed))


def _bin(steps: int) -> int:
    return -(-steps // _MOST_BARS)


def _bin_note(steps: int) -> str:
    return "" if _bin(steps) == 1 else f" (each bar the mean of {_bin(steps)} steps)"


def _laid_out(figure: go.Figure, height: int = 320, **layout: Any) -> go.Figure:
    margin = {"l": 60, "r": 20, "t": 30, "b": 40}
    legend = {"orientation": "h", "y": -0.3, "yanchor": "top", "font": {"size": 11}}  # several lines grow downwards
    shown = {"template": "none", "hovermode": "x unified", "showlegend": True}
    return figure.update_layout(height=height, margin=margin, legend=legend, **shown, **layout)
