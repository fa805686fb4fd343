"""The reference probability (the reference's scoreB) of recorded log-probs, rounded to bfloat16 as the reference
does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_files import load, to_float

from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.types import UserError

GOLDEN = load("compute_scoreB.json")
CASES = [
    pytest.param(case, variant, id=f"{number}-{variant}")
    for number, case in enumerate(GOLDEN["cases"])
    for variant in case["expected"]
]


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_score_of_recorded_log_probs(case: dict[str, Any], variant: str) -> None:
    name, one_more, adjusted = (part.split("=")[-1] for part in variant.split("|"))
    log_probs = np.array([to_float(x) for x in case["log_probs"]], dtype=np.float32)[np.array(case["mask"], dtype=bool)]
    cap_last = one_more == "True" and adjusted == "True"
    score = aggregate(log_probs, name, cap_last=cap_last, bf16_rounding=True)
    if case["dtype"] == "float32":
        assert score == to_float(case["expected"][variant])
    else:
        # Log-probs are float32 here; a cap that was itself rounded to a shorter type may move the result by one step of
        # bfloat16.
        assert score == pytest.approx(to_float(case["expected"][variant]), rel=2**-7)


def test_an_unknown_aggregation_is_refused() -> None:
    assert GOLDEN["unknown_name_error"]
    with pytest.raises(UserError, match="compute_score_name"):
        aggregate(np.zeros(2, dtype=np.float32), "no_such_score")
