"""Differences are rounded to the reference's bins."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load, to_float

from megatron_rlpr.reward.shaping import discrete_function, map_to_bins
from megatron_rlpr.types import UserError

GOLDEN = load("map_to_bins.json")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"bin_{case['num_bins']}")
def test_bins(case: dict[str, Any]) -> None:
    expected = [to_float(y) for y in case["expected"]]
    assert [map_to_bins(x, case["num_bins"]) for x in case["x"]] == expected
    by_name = discrete_function(f"bin_{case['num_bins']}")
    assert [by_name(x) for x in case["x"]] == expected


def test_no_bins_are_refused() -> None:
    assert GOLDEN["num_bins_0_error"] == "ValueError"
    with pytest.raises(ValueError, match="num_bins"):
        map_to_bins(0.5, 0)
    with pytest.raises(UserError, match="discrete_function_name"):
        discrete_function("bin_0")
