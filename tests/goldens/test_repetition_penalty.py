"""The repetition penalty of every recorded text, for every recorded window and limit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from golden_files import load, to_float

from megatron_rlpr.reward.repetition import repetition_penalty

CASES = [
    pytest.param(case, setting, id=f"{number}-{setting}")
    for number, case in enumerate(load("repetition_penalty.json")["cases"])
    for setting in case
    if setting != "text"
]


@pytest.mark.parametrize(("case", "setting"), CASES)
def test_penalty_of_a_text(case: dict[str, Any], setting: str) -> None:
    match = re.fullmatch(r"w(\d+)_l(\d+)", setting)
    assert match is not None
    assert repetition_penalty(case["text"], window=int(match[1]), limit=int(match[2])) == to_float(case[setting])
