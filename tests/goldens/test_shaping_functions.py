"""Every shaping function has the reference's values; names the reference refuses are refused."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load, to_float

from megatron_rlpr.reward.shaping import shaping_function
from megatron_rlpr.types import UserError

GOLDEN = load("shaping_functions.json")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["shaping_function_name"])
def test_shaped_values(case: dict[str, Any]) -> None:
    shape = shaping_function(case["shaping_function_name"])
    assert [shape(x, 0) for x in case["x"]] == pytest.approx(
        [to_float(y) for y in case["expected"]], rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize("case", GOLDEN["constructor_errors"], ids=lambda case: case["shaping_function_name"])
def test_names_that_the_reference_refuses_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="shaping_function_name"):
        shaping_function(case["shaping_function_name"])
