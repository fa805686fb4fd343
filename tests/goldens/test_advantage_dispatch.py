"""Which estimators a training run may ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from corrections import correction
from golden_files import load, to_float

from megatron_rlpr.algorithm.advantage import EstimatorOptions, GroupRewards, estimate_advantages, flat_share
from megatron_rlpr.types import UserError

FILE = "advantage_dispatch.json"


def two_groups() -> list[GroupRewards]:
    """Two groups with a spread in every reward."""
    rewards = np.array([0.1, 0.9, 0.4])
    parts = {"probability_rewards": rewards, "graded_rewards": np.array([0.0, 1.0, 0.0]), "baselines": np.full(3, 0.3)}
    return [
        GroupRewards.at_the_end(rewards, [3, 2, 4], **parts),
        GroupRewards.at_the_end(rewards[::-1], [1, 5, 2], **parts),
    ]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["adv_estimator"]) for case in load(FILE)["cases"]])
def test_an_estimator_runs_or_is_refused_by_name(case: dict[str, Any]) -> None:
    name = case["adv_estimator"]
    corrected = correction(FILE, name)
    if case["error"] is not None and corrected is None:
        with pytest.raises(UserError, match=f"adv_estimator.*{name}"):
            estimate_advantages(name, two_groups(), EstimatorOptions())
        return

    results = estimate_advantages(name, two_groups(), EstimatorOptions())

    assert [len(row) for result in results for row in result.tokens] == [3, 2, 4, 1, 5, 2]
    assert all(np.isfinite(row).all() for result in results for row in result.tokens)
    assert any(row.any() for result in results for row in result.tokens)
    if corrected is None:
        rate = flat_share(name, results)
        assert (-1 if rate is None else rate) == to_float(case["filter_rate"])
        assert case["has_final_reward_stds"] == all(np.isfinite(result.std) for result in results)
