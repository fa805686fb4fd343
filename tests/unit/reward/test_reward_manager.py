"""The reward of a response: every manager's combination, the controls, and that nothing a model writes breaks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rollout_records import group, prompt, response

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoreRequest, TokenScores, UserError

GOOD = "<think> six sevens </think> <answer> 42 </answer>"
UNCLOSED = "<think> r </think> <answer> 42"
REPEATED = "<think>" + " again and again we say the same ten words now" * 10 + " </think> <answer> 42 </answer>"


def exact_match(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
    return [float(f"<answer> {question.reference_answer} </answer>" in answer.text) for question, answer in pairs]


def manager(tokenizer: Any, **config: Any) -> RewardManager:
    return RewardManager(RewardConfig(**config), tokenizer, 600, 600, exact_match)


def scores_of(request: ScoreRequest | None, probability: float) -> TokenScores | None:
    if request is None:
        return None
    tokens = request.stop - request.start
    return TokenScores(np.full(tokens, math.log(probability), dtype=np.float32), np.zeros(tokens, dtype=np.float32))


def rewards_of(
    rewards: RewardManager, rollouts: RolloutGroup, probability: float, base: float
) -> tuple[ResponseReward, ...]:
    (requests,) = rewards.reference_requests([rollouts])
    return rewards.rewards([rollouts], [[scores_of(request, probability) for request in requests]], [base])[0]


def test_the_default_reward_is_the_clipped_difference_and_a_tenth_of_format(chat_tokenizer: Any) -> None:
    rewards = manager(chat_tokenizer)
    good, unclosed, plain = rewards_of(rewards, group(chat_tokenizer, GOOD, UNCLOSED, "42"), 0.8, 0.3)
    assert good.reward == pytest.approx(0.9 * 0.5 + 0.1)
    assert unclosed.reward == pytest.approx(0.9 * 0.5), "spliced although the answer is not closed"
    assert plain.reward == 0.0
    assert (good.splice_valid, unclosed.splice_valid, plain.splice_valid) == (True, True, False)
    assert (good.extracted_answer, unclosed.extracted_answer) == ("42", "")
    worse = rewards_of(rewards, group(chat_tokenizer, GOOD), 0.2, 0.3)[0]
    assert worse.reward == pytest.approx(0.1), "less likely than without reasoning counts 0"
    assert worse.reference_probability == pytest.approx(0.2)
    assert worse.base_probability == pytest.approx(0.3)


def test_format_coefficient_minus_one_punishes_a_wrong_format(chat_tokenizer: Any) -> None:
    good, unclosed = rewards_of(
        manager(chat_tokenizer, format_coefficient=-1), group(chat_tokenizer, GOOD, UNCLOSED), 0.8, 0.3
    )
    assert (good.reward, unclosed.reward) == (pytest.approx(0.5), -1.0)


def test_a_repetition_is_penalised_once_and_also_at_reward_zero(chat_tokenizer: Any) -> None:
    for settings_, base in (({}, 0.3), ({"reward_manager": "mix"}, 0.3), ({"format_coefficient": 0.0}, 0.9)):
        with_penalty = rewards_of(manager(chat_tokenizer, **settings_), group(chat_tokenizer, REPEATED), 0.8, base)[0]
        without = rewards_of(
            manager(chat_tokenizer, repetition_penalty=False, **settings_), group(chat_tokenizer, REPEATED), 0.8, base
        )[0]
        assert with_penalty.repetition == -1.0
        assert with_penalty.reward == pytest.approx(without.reward - 1)


def test_special_tokens_are_no_words(chat_tokenizer: Any) -> None:
    eos = chat_tokenizer.eos_token
    text = "a b c d e f g h i " + f"a b c d e{eos} f g h i j " * 9
    limit = {"repetition_penalty_max_repetitions_limit": 9}
    rollouts = RolloutGroup(prompt(chat_tokenizer), (response(chat_tokenizer, text),))
    assert rewards_of(manager(chat_tokenizer, **limit), rollouts, 0.5, 0.0)[0].repetition == -1.0


def test_naive_and_mixed_rewards_weigh_the_grade(chat_tokenizer: Any) -> None:
    rollouts = group(chat_tokenizer, GOOD, GOOD.replace("42", "41"))
    naive = rewards_of(manager(chat_tokenizer, reward_manager="naive"), rollouts, 0.8, 0.3)
    assert [r.reward for r in naive] == pytest.approx([1.0, 0.1])
    assert [r.accuracy for r in naive] == [1.0, 0.0]
    mixed = rewards_of(manager(chat_tokenizer, reward_manager="mix", pr_weight=2.0, vr_weight=3.0), rollouts, 0.8, 0.3)
    assert [r.reward for r in mixed] == pytest.approx([3.0 * 1.0 + 2.0 * 0.55, 3.0 * 0.1 + 2.0 * 0.55])


def test_the_naive_manager_asks_the_policy_for_nothing(chat_tokenizer: Any) -> None:
    rewards = manager(chat_tokenizer, reward_manager="naive")
    assert rewards.reference_requests([group(chat_tokenizer, GOOD, GOOD)]) == [[None, None]]


def test_graded_sources_are_graded_and_others_scored(chat_tokenizer: Any) -> None:
    rewards = manager(chat_tokenizer, reward_type="pr+vr")
    maths = group(chat_tokenizer, GOOD, GOOD.replace("42", "41"), data_source="DAPO-Math-17k")
    assert rewards.reference_requests([maths]) == [[None, None]]
    right, wrong = rewards_of(rewards, maths, 0.8, 0.3)
    assert (right.reference_probability, right.base_probability) == (1.0, 0.0)
    assert (right.reward, wrong.reward) == (pytest.approx(1.0), pytest.approx(0.1))
    other = rewards_of(rewards, group(chat_tokenizer, GOOD), 0.8, 0.3)[0]
    assert other.reward == pytest.approx(0.55)


def test_the_control_run_rewards_the_format_alone(chat_tokenizer: Any) -> None:
    good, unclosed = rewards_of(
        manager(chat_tokenizer, format_only=True), group(chat_tokenizer, GOOD, UNCLOSED), 0.9, 0.0
    )
    assert (good.reward, unclosed.reward) == (1.0, 0.0)


def test_a_manager_that_grades_needs_a_grader(chat_tokenizer: Any) -> None:
    for config in (
        RewardConfig(reward_manager="mix"),
        RewardConfig(reward_manager="naive"),
        RewardConfig(reward_type="pr+vr"),
    ):
        with pytest.raises(UserError, match="graded answers"):
            RewardManager(config, chat_tokenizer, 10, 10)


def test_many_groups_are_asked_for_like_each_alone(tokenizer: Any) -> None:
    groups = [
        group(tokenizer, GOOD, "no", UNCLOSED),
        group(tokenizer, "x"),
        group(tokenizer, UNCLOSED, GOOD, reference_answer="7 apples"),
    ]
    for splice in ("text", "tokens"):
        rewards = manager(tokenizer, splice=splice)
        requests = rewards.reference_requests(groups)
        assert requests == [rewards.reference_requests([each])[0] for each in groups]
        answers = [[scores_of(request, 0.7) for request in of_group] for of_group in requests]
        together = rewards.rewards(groups, answers, [0.1, 0.2, 0.3])
        each = zip(groups, answers, (0.1, 0.2, 0.3), strict=True)
        assert together == [rewards.rewards([one], [scores], [base])[0] for one, scores, base in each]


def test_all_groups_are_graded_in_one_batch_of_those_that_need_a_grade(chat_tokenizer: Any) -> None:
    batches: list[list[str]] = []

    def grade(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
        batches.append([answer.text for _, answer in pairs])
        return exact_match(pairs)

    rewards = RewardManager(RewardConfig(reward_type="pr+vr"), chat_tokenizer, 600, 600, grade)
    wrong = GOOD.replace("42", "41")
    maths = [group(chat_tokenizer, GOOD, wrong, data_source="DAPO-Math-17k"), group(chat_tokenizer, GOOD)]
    maths.append(group(chat_tokenizer, wrong, data_source="AIME2024"))
    made = rewards.rewards(maths, [[None, None], [None], [None]], [0.0, 0.0, 0.0])
    assert [[r.accuracy for r in of_group] for of_group in made] == [[1.0, 0.0], [0.0], [0.0]]
    assert [len(batch) for batch in batches] == [3]


def test_the_base_request_puts_the_answer_right_after_the_prompt(tokenizer: Any) -> None:
    request = manager(tokenizer).base_requests([prompt(tokenizer, "forty two")])[0]
    assert tokenizer.decode(request.token_ids) == tokenizer.decode(prompt(tokenizer).token_ids) + " forty two"
    assert tokenizer.decode(request.token_ids[request.start : request.stop]).strip() == "forty two"


pieces = st.one_of(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "<pad>", "\n", " 42 "]),
    st.text(max_size=10),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=st.lists(pieces, max_size=15).map("".join), ends=st.booleans(), splice=st.sampled_from(["text", "tokens"]))
@example(text="", ends=False, splice="text")
@example(text="", ends=True, splice="tokens")
@example(text="<think>" * 50 + "</think><answer>" * 50, ends=True, splice="text")
@example(text="<think> " + "word " * 10_000 + "</think> <answer> 42 </answer>", ends=True, splice="text")
@example(text="<think> " + "word " * 10_000 + "</think> <answer> 42 </answer>", ends=False, splice="tokens")
@example(text="<think>\ufffd\U0001f642</think><answer>\u00a0\u202e", ends=False, splice="text")
def test_whatever_a_model_writes_gets_a_reward(tokenizer: Any, text: str, ends: bool, splice: str) -> None:
    for mode in ("R1", "R1_nothink"):
        rewards = manager(tokenizer, splice=splice, format_mode=mode, gt_tokens_one_more=True)
        rollouts = RolloutGroup(prompt(tokenizer), (response(tokenizer, text, ends),))
        (reward,) = rewards_of(rewards, rollouts, 0.7, 0.2)
        assert -1.0 <= reward.reward <= 1.0
        ((request,),) = rewards.reference_requests([rollouts])
        assert reward.splice_valid == (request is not None)
        if request is not None:
            assert 0 < request.start < request.stop == len(request.token_ids)
