"""Draw the metrics of one or more runs side by side.

    python -m tools.curves --out curves.png runs/NAME [runs/OTHER ...]

A panel for each of the metrics below that any of the runs has, a line per run; validations are dots joined by lines.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools.picture import save_picture
from tools.report.run_record import Series, series

TRAINING = ("reward/mean", "reward/reference_probability", "reward/format", "response_length/mean", "actor/entropy")
VALIDATION = ("reference_probability", "accuracy", "format")
"""The ends of the names val/{set}/{strategy}/..."""

_COLUMNS = 4

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""By metric and run, (step, value) in order."""


def main(arguments: list[str] | None = None) -> int:
    """Read the runs and write the picture."""
    parser = tool_parser("curves", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _draw(options))


def _draw(options: Namespace) -> None:
    found = curves(options.runs)
    save_picture(picture(found), options.out)
    print(f"{options.out}: {len(found)} metrics of {len(options.runs)} runs")


def curves(runs: Sequence[Path]) -> Curves:
    """What the runs have of TRAINING and VALIDATION. Raises UserError for a folder with none of it, or a bad line."""
    found: Curves = {name: {} for name in TRAINING}
    names = [run.resolve().name for run in runs]
    for run, name in zip(runs, names, strict=True):
        folder, label = RunFolder(run), name if names.count(name) == 1 else str(run)
        if not folder.metrics.is_file():
            raise UserError(f"{folder.metrics}: there is no such file; name the folder of a run, e.g. runs/quickstart")
        for file in (folder.metrics, folder.validations):
            for step, metrics in _records(file).items():
                for metric, value in metrics.items():
                    if metric in TRAINING or (metric.startswith("val/") and metric.rsplit("/", 1)[1] in VALIDATION):
                        found.setdefault(metric, {}).setdefault(label, []).append((step, value))
    drawn = {metric: of_runs for metric, of_runs in found.items() if of_runs}
    if not drawn:
        raise UserError(f"{', '.join(map(str, runs))}: no step has been recorded yet")
    return drawn


def _records(file: Path) -> Series:
    """None of a file that is not there: a run without validations."""
    records, bad = series(file) if file.is_file() else ({}, [])
    if bad:
        raise UserError(f"{file}, line {bad[0]}: expected the record of a step, an object with step")
    return records


def picture(found: Curves) -> Figure:
    """A panel per metric."""
    rows = -(-len(found) // _COLUMNS)
    figure = Figure(figsize=(4 * min(len(found), _COLUMNS), 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, min(len(found), _COLUMNS), squeeze=False).flat)
    runs = list(dict.fromkeys(run for of_runs in found.values() for run in of_runs))
    for axes, (metric, of_runs) in zip(panels, found.items(), strict=False):
        axes.set_title(metric, fontsize=9)
        axes.grid(color="#eeeeee")
        for run, points in of_runs.items():
            marker = "o" if metric.startswith("val/") or len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), marker=marker, color=f"C{runs.index(run) % 10}", label=run)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    handles = {run: line for axes in figure.axes for line in axes.get_lines() if (run := str(line.get_label()))}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4))
    return figure


if __name__ == "__main__":
    sys.exit(main())
