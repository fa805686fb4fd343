"""Draw what several runs reached on the same held-out prompts, with 95% intervals, and print the table of it.

    python -m tools.headline --out headline.svg runs/s1 runs/s2 runs/s3 --control runs/control

Reads summary.json of every run. "before" is the initial policy, which all runs share; the control is a run whose reward
knows nothing of the reference answer.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_rlpr.evaluation.comparison import MEASURES, interval_text
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools.picture import save_picture

DRAWN = ("reference_probability", "accuracy", "format")

Outcome = Mapping[str, Mapping[str, float]]
"""By measure: mean, low and high over the prompts."""


def main(arguments: list[str] | None = None) -> int:
    """Read the summaries, draw the picture, print the table."""
    parser = tool_parser("headline", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--control", nargs="*", default=[], type=Path, help="folders of control runs")
    parser.add_argument("--out", type=Path, required=True, help="the PNG or SVG file to write")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _draw(options))


def _draw(options: Namespace) -> None:
    summaries = {folder: _summary(folder) for folder in (*options.runs, *options.control)}
    found = outcomes(summaries, options.control)
    save_picture(picture(found, next(iter(summaries.values()))["prompts"]), options.out)
    print(table(found))
    print(f"\n{options.out}: {len(options.runs)} runs and {len(options.control)} controls")


def outcomes(summaries: Mapping[Path, dict[str, Any]], controls: Sequence[Path] = ()) -> dict[str, Outcome]:
    """By label, in order: before training, then every run. Raises UserError where the runs began differently."""
    (first, summary), *others = summaries.items()
    for folder, other in others:
        if other["prompts"] != summary["prompts"] or any(other["before"][m] != summary["before"][m] for m in DRAWN):
            raise UserError(
                f"{folder}: began with other answers than {first} to the same prompts, or had other prompts: compare "
                "runs of one model, data and precision on one machine"
            )
    found = {"before training": summary["before"]}
    for folder, summary in summaries.items():
        name = folder.resolve().name
        found[f"{name} (control)" if folder in controls else name] = summary["after"]
    return found


def _summary(folder: Path) -> dict[str, Any]:
    file = RunFolder(folder).summary
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; name the folder of a run that has ended, e.g. runs/quickstart")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ends = [content[side][m][end] for side in ("before", "after") for m in DRAWN for end in ("mean", "low", "high")]
        whole = all(isinstance(end, float) for end in ends) and isinstance(content["prompts"], int)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{file}: is no summary of a run with {', '.join(DRAWN)} before and after; train it again")
    return dict(content)


def table(found: Mapping[str, Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [["run", *(MEASURES[measure] for measure in DRAWN)], ["---"] * (1 + len(DRAWN))]
    lines += [[label, *(interval_text(outcome[measure]) for measure in DRAWN)] for label, outcome in found.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def picture(found: Mapping[str, Outcome], prompts: int) -> Figure:
    """A panel per measure, a dot with its interval per run."""
    figure = Figure(figsize=(3.6 * len(DRAWN), 0.9 + 0.42 * len(found)), layout="constrained")
    panels = list(figure.subplots(1, len(DRAWN), sharey=True))
    for axes, measure in zip(panels, DRAWN, strict=True):
        axes.set_title(MEASURES[measure], fontsize=10)
        axes.grid(axis="x", color="#eeeeee")
        for row, (label, outcome) in enumerate(found.items()):
            mean, low, high = (outcome[measure][end] for end in ("mean", "low", "high"))
            trained = row > 0 and not label.endswith("(control)")
            color = "C0" if trained else "0.5"
            axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=color)
            axes.annotate(f"{mean:.3f}", (mean, row), (0, 5), textcoords="offset points", fontsize=8, ha="center")
        axes.set_xlim(0, 1.05)
        axes.set_ylim(len(found) - 0.5, -0.6)
    panels[0].set_yticks(range(len(found)), list(found))
    figure.supxlabel(f"{prompts} held-out prompts, greedy; mean and 95% interval", fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
