"""How well does the probability of the reference answer tell right responses from wrong ones?

    python -m tools.pr_quality --model models/smollm2-135m --responses responses.jsonl actor.dtype=float32

The real policy scores the reference answer spliced into every labelled response, as a reward would. Prints the area
under the ROC curve of the mean probability and its rivals, with intervals from resampled questions, per category too,
and what the mean probability has over each of the others.

A line of the file is a JSON object with question, response, reference and correct; options and pred (a letter),
category and data_source where there are any. key=value are keys of a run: all of actor (the layout, the precision;
under torchrun ranks share the work), rollout.temperature, reward.splice and model.megatron_checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.loading import load_config
from megatron_rlpr.config.schema import Config
from megatron_rlpr.system import process_environment
from megatron_rlpr.system.atomic_file import write_text
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools.labelled_responses import read_labelled

_OTHER_KEYS = ("model.megatron_checkpoint", "rollout.temperature", "reward.splice")


def main(arguments: list[str] | None = None) -> int:
    """Score, print the figures and, where asked, write picture and measures."""
    options = _parser().parse_intermixed_args(arguments)  # key=value may stand anywhere
    return exit_status(lambda: _measure(options))


def _parser() -> ArgumentParser:
    parser = tool_parser("pr_quality", __doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--responses", type=Path, required=True, help="labelled responses, JSON Lines")
    parser.add_argument("--limit", type=int, help="lines to read; default: all")
    parser.add_argument("--length-control", action="store_true", help="also judge by the lengths alone")
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the questions; default: 2000")
    parser.add_argument("--json", action="store_true", help="print JSON, every category's measures included")
    parser.add_argument("--plot", type=Path, help="a PNG file to write")
    parser.add_argument("--scores", type=Path, help="a file to write every response's measures to, JSON Lines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of a run, e.g. actor.dtype=float32")
    return parser


def configuration(model: str, overrides: Sequence[str]) -> Config:
    """The policy's and the splice's settings. Raises UserError for a key that would do nothing here."""
    useful = [name for name in all_keys() if name.startswith("actor.") or name in _OTHER_KEYS]
    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        if name in all_keys() and name not in useful:
            raise UserError(f"{name} has no effect on scores: the keys of actor have, and {', '.join(_OTHER_KEYS)}")
    return load_config([f"model.path={model}", *overrides])


def _measure(options: Namespace) -> None:
    begun, first = time.monotonic(), os.environ.get("RANK", "0") == "0"
    for name in ("limit", "resamples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
    config = configuration(options.model, options.overrides)
    rows = read_labelled(options.responses)[: options.limit] if first else []
    from megatron_rlpr.config import checks
    from megatron_rlpr.tracking.console import Console
    from tools.pr_quality.scoring import check_sources, score

    checks.check_policy(config, int(os.environ.get("WORLD_SIZE", "1")))
    check_sources(rows, options.responses)
    console = Console(rank=0 if first else 1, file=sys.stderr)
    scored = score(config, rows, options.responses, options.length_control, console)
    if not first:
        return
    from tools.picture import save_picture
    from tools.pr_quality.plot import picture
    from tools.pr_quality.quality import quality
    from tools.pr_quality.table import record, tables

    found = quality(scored.measures, scored.rows, options.resamples)
    counts = {"longer": scored.longer, "unplaced": scored.unplaced}
    if options.scores:
        lines = zip(scored.rows, zip(*scored.measures.values(), strict=True), strict=True)
        names = list(scored.measures)
        written = [
            json.dumps({"line": row.line, "correct": row.correct, **dict(zip(names, map(float, values), strict=True))})
            for row, values in lines
        ]
        write_text(options.scores, "\n".join(written) + "\n")
    if options.plot:
        about = (
            f"{Path(options.model).name}: {found.overall.responses} responses to {found.overall.questions} questions"
        )
        save_picture(picture(found, about), options.plot)
    if options.json:
        header = {"model": options.model, "responses_file": str(options.responses), "left_out": counts}
        print(json.dumps({**header, "resamples": options.resamples, **record(found)}))
        return
    overall, total = found.overall, found.overall.responses
    left = f"left out: {scored.longer} that are too long, {scored.unplaced} without a place for the reference answer"
    print(f"{total} responses ({overall.right} right) to {overall.questions} questions; {left}")
    print(f"95% intervals from {options.resamples} resamples of the questions; {time.monotonic() - begun:.0f} s\n")
    print(tables(found), end="")


if __name__ == "__main__":
    process_environment.ensure()
    sys.exit(main())
