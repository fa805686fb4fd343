"""Rewards of the naive manager (graded accuracy) and of the mixed one (grade and reference probability)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from corrections import correction
from golden_files import load
from recorded_responses import rewards, row_sums

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.types import Prompt, Response, ResponseReward, UserError

FILE = "mix_naive_reward_managers.json"
GOLDEN = load(FILE)


def recorded_grade(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
    """The grader that the golden run used."""
    return [float("42" in response.text or "z" in response.text) for _, response in pairs]


def scored(**settings: Any) -> list[ResponseReward]:
    settings = {
        "shaping_function_name": "threshold_0",
        "score_bf16_rounding": True,
        "repetition_penalty": False,
        **settings,
    }
    return rewards(RewardConfig(**settings), grade=recorded_grade)


def agree(values: list[float], rows: list[list[list[float]]]) -> None:
    """One number per response. The reference writes some at the column of another row's last token (Q11); sums do not
    see it."""
    assert correction(FILE, "columns") is not None
    assert values == pytest.approx(row_sums(rows), rel=1e-6, abs=1e-7)


def test_naive_rewards() -> None:
    results = scored(reward_manager="naive")
    agree([r.reward for r in results], GOLDEN["naive"]["reward_nonzero"])
    agree([r.accuracy for r in results], GOLDEN["naive"]["acc_nonzero"])
    agree([r.format for r in results], GOLDEN["naive"]["format_nonzero"])


def misplaced(values: list[float], uids: list[str]) -> list[float]:
    """What the reference makes of rows it never sorted by uid when it puts them back from that order."""
    by_uid = sorted(range(len(uids)), key=lambda row: uids[row])
    return [values[by_uid.index(row)] for row in range(len(uids))]


@pytest.mark.parametrize(
    "case", GOLDEN["mix"], ids=lambda case: f"pr{case['pr_weight']}-vr{case['vr_weight']}-n{case['n_rollouts']}"
)
def test_mixed_rewards(case: dict[str, Any]) -> None:
    out, uids = case["out"], case["uid"]
    mixed = scored(reward_manager="mix", pr_weight=case["pr_weight"], vr_weight=case["vr_weight"])
    agree([r.reward for r in mixed], out["reward"])
    agree([r.format for r in mixed], out["format"])
    agree([r.accuracy for r in mixed], out["exact"])
    agree([r.reward for r in scored(reward_manager="prob")], out["pr_reward"])
    agree([r.reward for r in scored(reward_manager="naive")], out["vr_reward"])

    assert correction(FILE, "scores-of-other-rows") is not None
    for name in ("scoreB", "pr_scoreB"):
        agree(misplaced([r.reference_probability for r in mixed], uids), out[name])
    for name in ("scoreA", "pr_scoreA"):
        agree(misplaced([r.base_probability for r in mixed], uids), out[name])

    accuracy = {uid: [r.accuracy for r, other in zip(mixed, uids, strict=True) if other == uid] for uid in uids}
    assert [float(all(accuracy[uid])) - float(not any(accuracy[uid])) for uid in uids] == out["straightA"]


def test_there_is_no_hard_mix() -> None:
    assert GOLDEN["mix_type_hard_error"] == "NotImplementedError"
    assert correction(FILE, "mix_type_hard_error") is not None
    with pytest.raises(UserError, match="mix_type"):
        load_config(["reward.mix_type=hard"])
