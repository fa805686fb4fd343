"""The quickstart's control run differs from the quickstart in what it controls for, and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_rlpr.config.loading import load_config, resolved

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


def flat(file: str) -> dict[str, Any]:
    values = resolved(load_config(["--config", str(QUICKSTART / file)]))
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def test_the_control_run_differs_by_the_reward_and_the_name_alone() -> None:
    run, control = flat("config.yaml"), flat("format_only.yaml")
    differences = {key: (run[key], control[key]) for key in run if run[key] != control[key]}
    assert differences == {
        "reward.format_only": (False, True),
        "trainer.name": ("quickstart", "quickstart-format-only"),
    }
