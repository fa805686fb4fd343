"""examples/robustness: the quickstart's recipe with another prompt, run once for each template."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from megatron_rlpr.config.checks import pure
from megatron_rlpr.config.loading import load_config, resolved
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


def test_the_script_trains_every_template_with_its_format_and_draws_them(tmp_path: Path) -> None:
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(RECORDER.format(log=log))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "RUNS": str(tmp_path / "runs"), "RANKS": "1"}
    script = EXAMPLES / "robustness" / "run.sh"
    subprocess.run([str(script), "actor.dtype=float32"], env=environment, cwd="/", check=True)
    *trainings, picture = log.read_text().splitlines()
    asked = []
    for command in trainings:
        launcher, _, keys = command.partition("pretrain_rlpr.py ")
        assert launcher == "-m tools.launch --nproc-per-node 1 "
        keys = keys.replace("--config examples", f"--config {EXAMPLES}")
        config = load_config(keys.split())
        assert not list(pure.refusals(config, 1))
        assert config.actor.dtype == "float32"
        asked.append((config.data.template, config.reward.format_mode, config.trainer.name))
    assert asked == [
        (name, TEMPLATES[name].format_mode, f"robustness-{name}") for name in ("R1", "R1_nothink", "plain")
    ]
    runs = tmp_path / "runs"
    folders = " ".join(str(runs / name) for _, _, name in asked)
    assert picture == f"-m tools.curves --out {runs / 'robustness.png'} {folders}"
