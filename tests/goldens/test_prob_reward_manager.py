"""Rewards of the probability manager, for every recorded configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from corrections import correction
from golden_files import load
from recorded_responses import INPUT, at_last_token, recorded_responses, rewards, row_sums

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.reward.answer_tags import extract_answer
from megatron_rlpr.types import Prompt, Response

FILE = "prob_reward_manager.json"
GOLDEN = load(FILE)


def reward_config(kwargs: dict[str, Any]) -> RewardConfig:
    """The recorded constructor arguments; what is not given has the reference's defaults."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    return RewardConfig(
        **{"shaping_function_name": "identity", "score_bf16_rounding": True, "repetition_penalty": False, **given}
    )


def assert_rows_agree(values: list[float], golden: list[list[list[float]]]) -> None:
    """Same columns, same values to float32."""
    mine = at_last_token([value if abs(value) > 1e-7 else 0.0 for value in values])
    assert [[column for column, _ in row] for row in mine] == [[column for column, _ in row] for row in golden]
    assert row_sums(mine) == pytest.approx(row_sums(golden), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    "run", GOLDEN["runs"], ids=lambda run: "-".join(str(value) for value in run["kwargs"].values())
)
def test_rewards_of_a_configuration(run: dict[str, Any]) -> None:
    scored = rewards(reward_config(run["kwargs"]))
    assert_rows_agree([r.reward for r in scored], run["reward_nonzero"])
    assert_rows_agree([r.format for r in scored], run["format_nonzero"])
    assert [r.reference_probability for r in scored] == run["scoreB"]
    assert [r.base_probability for r in scored] == pytest.approx(run["scoreA"])
    assert [r.extracted_answer for r in scored] == run["extracted"]


def test_graded_sources_of_pr_plus_vr() -> None:
    run = GOLDEN["pr_plus_vr"]

    def exact_match(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [float(extract_answer(response.text) == prompt.reference_answer) for prompt, response in pairs]

    scored = rewards(reward_config({"reward_type": "pr+vr"}), run["data_source"], exact_match)
    assert_rows_agree([r.reward for r in scored], run["reward_nonzero"])
    assert [r.reference_probability for r in scored] == run["scoreB"]
    assert [r.base_probability for r in scored] == run["scoreA"]
    for reward, response, golden in zip(scored, recorded_responses(), run["extracted"], strict=True):
        if golden.startswith("('"):
            assert correction(FILE, "pr_plus_vr-with-a-tuple-for-a-response") is not None
            assert reward.extracted_answer == extract_answer(response.text)
        else:
            assert reward.extracted_answer == golden
    assert len(scored) == len(INPUT["responses_text"])
