"""The learning-rate schedule is the reference's, one step earlier: no step is trained at rate 0."""

from __future__ import annotations

import re
from typing import Any

import pytest
from corrections import correction
from golden_files import load

from megatron_rlpr.algorithm.learning_rate import multiplier

FILE = "lr_schedule.json"


def setting(name: str, pattern: str) -> float:
    """The number after `pattern` in a schedule's name; 0 if it is not there."""
    found = re.search(rf"_{pattern}([\d.]+)", name)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("case", [pytest.param(case, id=case["schedule"]) for case in load(FILE)["cases"]])
def test_step_k_runs_at_the_rate_of_the_reference_one_step_later(case: dict[str, Any]) -> None:
    name, golden = case["schedule"], case["lr_used_at_update_call_k"]
    warmup, total = int(setting(name, "w(?:armup)?")), int(setting(name, "t"))
    options = {
        "warmup_steps": warmup,
        "total_steps": total,
        "style": name.split("_")[0],
        "min_ratio": setting(name, "min"),
    }
    assert correction(FILE, name), "the reference starts every schedule at 0 (Q7)"
    assert golden[0] == 0.0

    for k, rate in enumerate(golden[1:]):
        if total and k >= total:  # past the end of training the reference's cosine rises again
            rate = case["base_lr"] * options["min_ratio"]
        assert case["base_lr"] * multiplier(k, **options) == pytest.approx(rate, rel=1e-9)
