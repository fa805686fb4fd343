"""The scripts that train several runs and draw them: the quickstart's evidence, and its robustness to the prompt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from megatron_rlpr.config.checks import pure
from megatron_rlpr.config.loading import load_config, resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.prompt_templates import TEMPLATES

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"

RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "{log}"
"""
"""In Python's place: notes what it was asked to run."""


def flat(*arguments: str) -> dict[str, Any]:
    values = resolved(load_config(arguments))
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def test_the_recipe_is_the_quickstart_with_another_prompt() -> None:
    run = flat("--config", str(EXAMPLES / "robustness" / "config.yaml"))
    quickstart = flat("--config", str(EXAMPLES / "quickstart" / "config.yaml"))
    assert {key: (quickstart[key], run[key]) for key in run if run[key] != quickstart[key]} == {
        "data.template": ("as_is", "R1"),
        "trainer.name": ("quickstart", "robustness-R1"),
    }


def commands_of(script: Path, folder: Path) -> tuple[list[Config], str]:
    """The configurations a script trains in order, each checked, and the command that draws them."""
    python, log = folder / "python", folder / "log"
    python.write_text(RECORDER.format(log=log))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "RUNS": str(folder / "runs"), "RANKS": "1"}
    subprocess.run([str(script), "actor.dtype=float32"], env=environment, cwd="/", check=True)
    *trainings, picture = log.read_text().splitlines()
    asked = []
    for command in trainings:
        launcher, _, keys = command.partition("pretrain_rlpr.py ")
        assert launcher == "-m tools.launch --nproc-per-node 1 "
        config = load_config(keys.replace("--config examples", f"--config {EXAMPLES}").split())
        assert not list(pure.refusals(config, 1))
        assert (config.actor.dtype, config.trainer.runs_dir) == ("float32", str(folder / "runs"))
        asked.append(config)
    return asked, picture.replace(str(folder / "runs"), "RUNS")


def test_every_template_is_trained_with_its_format_and_drawn(tmp_path: Path) -> None:
    asked, picture = commands_of(EXAMPLES / "robustness" / "run.sh", tmp_path)
    names = [f"robustness-{template}" for template in ("R1", "R1_nothink", "plain")]
    assert [config.trainer.name for config in asked] == names
    for config in asked:
        assert config.reward.format_mode == TEMPLATES[config.data.template].format_mode
    assert picture == f"-m tools.curves --out RUNS/robustness.png {' '.join(f'RUNS/{name}' for name in names)}"


def test_three_seeds_and_the_control_are_trained_and_drawn(tmp_path: Path) -> None:
    asked, picture = commands_of(EXAMPLES / "quickstart" / "evidence.sh", tmp_path)
    found = [(c.trainer.name, c.trainer.seed, c.data.seed, c.reward.format_only) for c in asked]
    seeds = [(f"seed-{seed}", seed, seed, False) for seed in (1, 2, 3)]
    assert found == [*seeds, ("format-alone", 1, 1, True)]
    runs = " ".join(f"RUNS/{name}" for name, *_ in seeds)
    assert picture == f"-m tools.headline --out RUNS/headline.svg {runs} --control RUNS/format-alone"
