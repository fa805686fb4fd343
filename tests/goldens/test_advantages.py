"""Every advantage estimator gives the reference's numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from corrections import correction
from golden_files import load, to_float

from megatron_rlpr.algorithm.advantage import (
    ADVANTAGES,
    WHITEN_EPSILON,
    EstimatorOptions,
    GroupAdvantages,
    GroupRewards,
    estimate_advantages,
    flat_share,
    returns_to_go,
)
from megatron_rlpr.types import UserError

FILE = "advantages.json"
SETTING = re.compile(r"_(gamma|lam|pr|vr)([\d.]+)")
KEYS = {"gamma": "gamma", "pr": "pr_weight", "vr": "vr_weight"}


def cases() -> Iterator[Any]:
    for number, case in enumerate(load(FILE)["cases"]):
        for name in case["expected"]:
            yield pytest.param(case, name, id=f"{number}-{case['kind']}-{name}")


def parse(name: str) -> tuple[str, EstimatorOptions]:
    """ "reinforce_plus_plus_gamma0.9" -> ("reinforce_plus_plus", EstimatorOptions(gamma=0.9))."""
    estimator = next((known for known in sorted(ADVANTAGES, key=len, reverse=True) if name.startswith(known)), name)
    settings = SETTING.findall(name[len(estimator) :])
    return estimator, EstimatorOptions(**{KEYS[key]: float(value) for key, value in settings if key in KEYS})


class Rows:
    """The case's flat rows, grouped by uid, and back."""

    def __init__(self, case: dict[str, Any], baselines: list[float] | None) -> None:
        self.mask = np.array(case["response_mask"])
        self.members = {
            uid: [i for i, other in enumerate(case["uid"]) if other == uid] for uid in dict.fromkeys(case["uid"])
        }
        rewards, graded = (
            np.array(case["token_level_rewards"], dtype=float),
            np.array(case["token_level_vr"], dtype=float),
        )
        self.groups = [
            GroupRewards(
                tuple(rewards[i, self.mask[i] == 1] for i in rows),
                probability_rewards=rewards[rows].sum(axis=1),
                graded_rewards=graded[rows].sum(axis=1),
                baselines=None if baselines is None else np.array(baselines)[rows],
            )
            for rows in self.members.values()
        ]

    def flat(self, results: list[GroupAdvantages]) -> np.ndarray:
        """[rows, width] with zeros outside the mask."""
        table = np.zeros(self.mask.shape)
        for rows, result in zip(self.members.values(), results, strict=True):
            for i, tokens in zip(rows, result.tokens, strict=True):
                table[i, self.mask[i] == 1] = tokens
        return table

    def stds(self, results: list[GroupAdvantages]) -> np.ndarray:
        """[rows]: every row's group std."""
        column = np.zeros(len(self.mask))
        for rows, result in zip(self.members.values(), results, strict=True):
            column[rows] = result.std
        return column


def whitening_rounding(rows: Rows, options: EstimatorOptions) -> float:
    """What one float32 rounding of the mean becomes after division by the batch's std (the reference whitens in
    float32)."""
    returns = np.concatenate(
        [returns_to_go(row, options.gamma) for group in rows.groups for row in group.token_rewards]
    )
    return float(np.spacing(np.abs(returns).max(), dtype=np.float32) / np.sqrt(returns.var(ddof=1) + WHITEN_EPSILON))


@pytest.mark.parametrize(("case", "name"), cases())
def test_estimator_agrees_with_the_reference(case: dict[str, Any], name: str) -> None:
    expected = case["expected"][name]
    estimator, options = parse(name)
    rows = Rows(case, expected.get("reward_baselines"))
    if correction(FILE, name):
        with pytest.raises(UserError, match="adv_estimator"):
            estimate_advantages(estimator, rows.groups, options)
        return

    results = estimate_advantages(estimator, rows.groups, options)

    rounding = whitening_rounding(rows, options) if estimator == "reinforce_plus_plus" else 0.0
    np.testing.assert_allclose(rows.flat(results), expected["advantages"], rtol=2e-5, atol=2e-6 + rounding)
    if "filter_rate" in expected:
        rate = flat_share(estimator, results)
        assert (-1 if rate is None else rate) == pytest.approx(to_float(expected["filter_rate"]))
    if "final_reward_stds" in expected:
        np.testing.assert_allclose(rows.stds(results), expected["final_reward_stds"], rtol=1e-5, atol=1e-6)
    if "vr_stds" in expected:
        graded_only = estimate_advantages("prnostd_vrstd", rows.groups, options)
        np.testing.assert_allclose(rows.stds(graded_only), expected["vr_stds"], rtol=1e-5, atol=1e-6)
    if "returns" in expected:
        for i, (reward, mask) in enumerate(zip(case["token_level_rewards"], rows.mask, strict=True)):
            returns = returns_to_go(np.array(reward)[mask == 1], options.gamma)
            np.testing.assert_allclose(returns, np.array(expected["returns"][i])[mask == 1], rtol=1e-5, atol=1e-6)
