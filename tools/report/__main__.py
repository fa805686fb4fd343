"""What a run did, as one HTML page that needs no network: curves, before and after, responses, configuration.

    python -m tools.report runs/NAME [runs/OTHER ...] [--out report.html] [--screenshot report.png]
    python -m tools.report --config RECIPE.yaml [key=value ...]     the run that these arguments of a training make

Several runs are drawn on the same axes. Prints the path of the page: report.html in the first run's folder, unless
--out says otherwise. A page shows some thousand responses; where the runs have more, it says how they were drawn.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from megatron_rlpr.system import atomic_file, process_environment
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError

MOST_ROWS = 4096
MOST_CHARACTERS = 8_000_000
"""Of all prompts and responses of a page, so that it opens quickly."""
_SCREEN = "1400,2760"


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print its path; returns the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _report(options))


def _parser() -> ArgumentParser:
    parser = tool_parser("report", __doc__)
    parser.add_argument("runs", nargs="*", help="folders of runs; with --config: key=value as for a training")
    parser.add_argument("--config", help="the recipe of the run, in place of its folder")
    parser.add_argument("--out", type=Path, help="default: report.html in the first run's folder")
    parser.add_argument("--samples", type=int, default=MOST_ROWS, help=f"responses to show, default {MOST_ROWS}")
    parser.add_argument("--screenshot", type=Path, help="a PNG of the page to make, with Chromium")
    return parser


def _report(options: Namespace) -> None:
    # Here, because processes that grade import this module.
    from tools.report.grades import correctness
    from tools.report.page import page
    from tools.report.run_record import read_runs
    from tools.report.samples import choose

    if options.samples < 1:
        raise UserError(f"--samples {options.samples}: expected at least 1")
    runs = read_runs(_folders(options))
    chosen = [choose(run, options.samples // len(runs), MOST_CHARACTERS // len(runs)) for run in runs]
    rows = [
        (number, row, right)
        for number, (run, samples) in enumerate(zip(runs, chosen, strict=True))
        for row, right in zip(samples.rows, correctness(run, samples.rows), strict=True)
    ]
    out = options.out or runs[0].folder.path / "report.html"
    atomic_file.write_text(out, page(runs, rows, [samples.note for samples in chosen]))
    print(f"report: {out}")
    if options.screenshot:
        _screenshot(out, options.screenshot)


def _folders(options: Namespace) -> list[Path]:
    if options.config is None:
        if not options.runs:
            raise UserError("give the folders of one or several runs, e.g. runs/quickstart, or --config RECIPE.yaml")
        return [Path(run) for run in options.runs]
    from megatron_rlpr.config.loading import load_config

    trainer = load_config([f"--config={options.config}", *options.runs]).trainer
    return [Path(trainer.runs_dir) / trainer.name]


def _screenshot(page: Path, image: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise UserError("--screenshot needs Chromium: install it (Debian, Ubuntu: apt-get install chromium)")
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={_SCREEN}"]
    command += ["--virtual-time-budget=10000", f"--screenshot={image.resolve()}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode or not image.is_file():
        raise UserError(f"--screenshot {image}: Chromium made none: {done.stderr.strip()[-300:]}")
    print(f"screenshot: {image}")


if __name__ == "__main__":
    process_environment.ensure()
    sys.exit(main())
