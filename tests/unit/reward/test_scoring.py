"""One call of the policy answers for a whole batch of groups; every answer finds its way back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import load_prompts
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.reward.base_table import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoreRequest, TokenScores, UserError

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
GOOD, BAD = "<think> so </think> <answer> 8 </answer>", "no tags at all"


class KnownPolicy:
    """A policy whose log-probs follow from a request alone: -(token id + last token of the prompt) / 10000."""

    def __init__(self) -> None:
        self.calls: list[list[ScoreRequest]] = []

    def score(self, requests: Sequence[ScoreRequest], progress: Any = None) -> list[TokenScores]:
        self.calls.append(list(requests))
        return [self.of(request) for request in requests]

    def of(self, request: ScoreRequest) -> TokenScores:
        ids = np.array(request.token_ids[request.start : request.stop], dtype=np.float32)
        return TokenScores(-(ids + request.token_ids[request.start - 1]) / 1e4, ids)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


@pytest.fixture
def prompts(tokenizer: Any, tmp_path: Path) -> tuple[Prompt, ...]:
    import pandas as pd

    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n}+{n}=?"}],
            "data_source": "unit",
            "reward_model": {"ground_truth": str(2 * n)},
        }
        for n in range(1, 5)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    return load_prompts([tmp_path / "rows.parquet"], tokenizer, 100).prompts


def group(tokenizer: Any, prompt: Prompt, *texts: str) -> RolloutGroup:
    ids = [tuple(tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]) for text in texts]
    return RolloutGroup(prompt, tuple(Response(i, tokenizer.decode(i), (0.0,) * len(i), "stop", 0) for i in ids))


def scorer(tokenizer: Any, policy: KnownPolicy, base: Any, folder: Path) -> GroupScorer:
    table = BaseProbabilityTable({}, folder / "base.json").open()
    return GroupScorer(policy, RewardManager(Config().reward, tokenizer, 100, 60), base, {"train": table}, Clock())


@pytest.mark.parametrize("base", ["initial", "current", "none"])
def test_a_batch_is_scored_in_one_call_and_each_group_as_if_it_were_alone(
    tokenizer: Any, prompts: tuple[Prompt, ...], base: str, tmp_path: Path
) -> None:
    groups = [
        group(tokenizer, prompts[0], GOOD, BAD),
        group(tokenizer, prompts[1], BAD),
        group(tokenizer, prompts[2], GOOD, GOOD + " "),
    ]
    policy = KnownPolicy()
    made = scorer(tokenizer, policy, base, tmp_path)
    assert made.complete("train", prompts) == (4 if base == "initial" else 0)
    policy.calls.clear()
    together = made.score(groups, "train")
    assert len(policy.calls) == 1
    spliced, base_requests = 3, 3 if base == "current" else 0
    assert len(policy.calls[0]) == 5 + spliced + base_requests, "a response without tags costs no reference forward"
    for one, alone in zip(together, (made.score([g], "train")[0] for g in groups), strict=True):
        assert one.group is alone.group
        assert one.rewards == alone.rewards
        for a, b in zip(one.scores, alone.scores, strict=True):
            np.testing.assert_array_equal(a.log_probs, b.log_probs)


class OverflowingPolicy(KnownPolicy):
    """One log-prob of every request for the prompt `of` is no number."""

    def __init__(self, of: Prompt, value: float) -> None:
        super().__init__()
        self._of, self._value = of, value

    def of(self, request: ScoreRequest) -> TokenScores:
        scores = super().of(request)
        if request.token_ids[: len(self._of.token_ids)] == self._of.token_ids:
            scores.log_probs[-1] = self._value
        return scores


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_none_stop_the_run_and_name_the_prompt(
    tokenizer: Any, prompts: tuple[Prompt, ...], value: float, tmp_path: Path
) -> None:
    made = scorer(tokenizer, OverflowingPolicy(prompts[2], value), "initial", tmp_path)
    with pytest.raises(UserError, match="prompt 2 of train: the reference answer's log-probs or reward are NaN"):
        made.complete("train", prompts)
    assert not (tmp_path / "base.json").exists()
    made = scorer(tokenizer, OverflowingPolicy(prompts[2], value), "none", tmp_path)
    groups = [group(tokenizer, prompt, BAD) for prompt in prompts]
    assert len(made.score(groups[:2], "train")) == 2
    with pytest.raises(UserError, match="prompt 2 of train: a response's log-probs or reward are NaN or infinite"):
        made.score(groups, "train")


def test_own_scores_are_those_of_the_response_after_the_prompt(
    tokenizer: Any, prompts: tuple[Prompt, ...], tmp_path: Path
) -> None:
    policy = KnownPolicy()
    (one,) = scorer(tokenizer, policy, "none", tmp_path).score([group(tokenizer, prompts[3], BAD)], "train")
    response = one.group.responses[0]
    before = len(prompts[3].token_ids)
    request = ScoreRequest((*prompts[3].token_ids, *response.token_ids), before, before + len(response.token_ids))
    np.testing.assert_array_equal(one.scores[0].log_probs, policy.of(request).log_probs)
    assert (one.rewards[0].reference_probability, one.rewards[0].splice_valid) == (0.0, False)


def test_the_scores_of_a_references_tokens_are_those_that_made_its_probability(
    tokenizer: Any, prompts: tuple[Prompt, ...], tmp_path: Path
) -> None:
    (one,) = scorer(tokenizer, KnownPolicy(), "none", tmp_path).score(
        [group(tokenizer, prompts[3], BAD, GOOD)], "train"
    )
    nothing, scored = one.references
    assert nothing is None
    assert scored is not None
    assert tokenizer.decode(scored.token_ids).strip() == prompts[3].reference_answer
    assert np.exp(scored.log_probs).mean() == pytest.approx(one.rewards[1].reference_probability)


def test_base_probabilities_come_from_where_the_run_says(
    tokenizer: Any, prompts: tuple[Prompt, ...], tmp_path: Path
) -> None:
    policy, groups = KnownPolicy(), [group(tokenizer, prompts[0], GOOD)]
    stored = BaseProbabilityTable({}, tmp_path / "base.json")
    stored.record(prompts[:1], [0.125])
    stored.save()

    def base_of(mode: str, folder: Path) -> float:
        made = scorer(tokenizer, policy, mode, folder)
        made.complete("train", prompts)
        return made.score(groups, "train")[0].rewards[0].base_probability

    assert base_of("initial", tmp_path) == 0.125
    assert base_of("none", tmp_path) == 0.0
    assert base_of("current", tmp_path) == base_of("initial", tmp_path / "fresh") != 0.125


def test_only_what_a_table_lacks_is_computed_and_all_of_it_is_stored(
    tokenizer: Any, prompts: tuple[Prompt, ...], tmp_path: Path
) -> None:
    policy = KnownPolicy()
    made = scorer(tokenizer, policy, "initial", tmp_path)
    assert [made.complete("train", prompts[:3]), made.complete("train", prompts)] == [3, 1]
    assert made.complete("train", prompts) == scorer(tokenizer, policy, "initial", tmp_path).complete("train", prompts)
    assert [len(call) for call in policy.calls] == [3, 1], "where nothing is missing, the policy is not asked"
