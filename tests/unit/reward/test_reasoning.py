"""What reasoning is worth: its length and share, and the reference probability with it less that without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.metrics import length_metrics
from megatron_rlpr.reward.reasoning import gain_metrics
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoredGroup, ScoreRequest, TokenScores

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
GOOD, OTHER, BAD = "<think> so it is </think> <answer> 8 </answer>", "<think> 8 </think> <answer> 9 </answer>", "8"


class TinyModel:
    """A policy: transformers' own Llama with random weights, one sequence at a time."""

    def __init__(self, vocabulary: int) -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, **sizes)).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(4)  # so that what stands before the answer matters
        self.calls = 0

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest], progress: Any = None) -> list[TokenScores]:
        self.calls += 1
        return [self._of(request) for request in requests]

    def _of(self, request: ScoreRequest) -> TokenScores:
        logits = self.model(torch.tensor([request.token_ids])).logits[0].log_softmax(-1)
        rows = torch.arange(request.start, request.stop)
        chosen = logits[rows - 1, torch.tensor(request.token_ids)[rows]].numpy()
        return TokenScores(chosen, np.zeros_like(chosen))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


@pytest.fixture(scope="module")
def policy(tokenizer: Any) -> Iterator[TinyModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TinyModel(len(tokenizer))
    torch.set_num_threads(threads)


def prompt(tokenizer: Any, text: str, answer: str, source: str = "unit") -> Prompt:
    messages = ({"role": "user", "content": text},)
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    return Prompt(0, tuple(ids), messages, answer, source)


def group(tokenizer: Any, asked: Prompt, *texts: str) -> RolloutGroup:
    ids = [tuple(tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]) for text in texts]
    return RolloutGroup(asked, tuple(Response(i, tokenizer.decode(i), (0.0,) * len(i), "stop", 0) for i in ids))


def scorer(tokenizer: Any, policy: TinyModel, **settings: Any) -> GroupScorer:
    config = RewardConfig(**settings)
    return GroupScorer(
        policy, RewardManager(config, tokenizer, 100, 60, lambda pairs: [1.0] * len(pairs)), "none", {}, Clock()
    )


@pytest.mark.parametrize("splice", ["text", "tokens"])
@pytest.mark.parametrize("mode", ["R1", "R1_nothink"])
def test_the_gain_is_what_a_direct_computation_finds(tokenizer: Any, policy: TinyModel, splice: str, mode: str) -> None:
    made = scorer(tokenizer, policy, splice=splice, format_mode=mode)
    asked = [prompt(tokenizer, "4+4=?", "8"), prompt(tokenizer, "5+4=?", "nine")]
    groups = [group(tokenizer, asked[0], GOOD, BAD, OTHER), group(tokenizer, asked[1], GOOD)]
    scored = made.score(groups, "train")
    without = made.without_reasoning([RolloutGroup(one, ()) for one in asked])

    def directly(start: str, answer: str) -> float:
        """The mean probability of the answer's tokens in plain text."""
        text = f"{start} {answer} </answer>{tokenizer.eos_token}"
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        first, last = len(start) + 1, len(start) + 1 + len(answer)
        rows = [row for row, (a, b) in enumerate(encoding["offset_mapping"]) if a < last and b > first]
        (scores,) = policy.score([ScoreRequest(tuple(encoding["input_ids"]), rows[0], rows[-1] + 1)])
        return float(np.exp(scores.log_probs.astype(np.float64)).mean())

    no_reasoning = {"R1": "<think> </think> <answer>", "R1_nothink": "<answer>"}[mode]
    texts = [tokenizer.decode(list(one.token_ids)) for one in asked]
    assert without == pytest.approx(
        [directly(texts[0] + no_reasoning, "8"), directly(texts[1] + no_reasoning, "nine")], rel=1e-4
    )
    before_tag = [text.partition("<answer>")[0] + "<answer>" for text in (GOOD, OTHER)]
    gains = [directly(texts[0] + start, "8") - without[0] for start in before_tag if without[0] is not None]
    assert without[1] is not None
    gains.append(directly(texts[1] + before_tag[0], "nine") - without[1])
    metrics = gain_metrics(scored, without)
    assert metrics["reasoning/gain"] == pytest.approx(np.mean(gains), rel=1e-3)
    assert metrics["reasoning/probability_without"] == pytest.approx((2 * without[0] + without[1]) / 3)
    assert abs(metrics["reasoning/gain"]) > 0.01 * without[0], "the model does read what stands before the answer"


def test_it_costs_one_short_sequence_a_prompt_in_one_call(tokenizer: Any, policy: TinyModel) -> None:
    asked = [prompt(tokenizer, f"{n}+4=?", str(n + 4)) for n in range(3)]
    requests = RewardManager(RewardConfig(), tokenizer, 100, 60).requests_without_reasoning(asked)
    assert len(requests) == 3
    for one, request in zip(asked, requests, strict=True):
        assert request is not None
        assert request.token_ids[: len(one.token_ids)] == one.token_ids
        assert len(request.token_ids) - len(one.token_ids) < 40
    before = policy.calls
    scorer(tokenizer, policy).without_reasoning([RolloutGroup(one, ()) for one in asked])
    assert policy.calls == before + 1


def test_nothing_is_said_where_nothing_can_be(tokenizer: Any, policy: TinyModel) -> None:
    asked = prompt(tokenizer, "4+4=?", "8", "Math-500")
    broken = scorer(tokenizer, policy).score([group(tokenizer, asked, BAD, BAD)], "train")
    assert gain_metrics(broken, [0.5]) == {}, "the reference answer could not be spliced in"
    assert gain_metrics(broken, [None]) == gain_metrics([], []) == {}
    assert scorer(tokenizer, policy, reward_manager="naive").without_reasoning([RolloutGroup(asked, ())]) == [None]


def test_length_and_share_are_those_of_responses_with_the_right_tags(tokenizer: Any) -> None:
    asked = prompt(tokenizer, "4+4=?", "8")
    groups = [
        ScoredGroup(group(tokenizer, asked, GOOD, BAD), (), ()),
        ScoredGroup(group(tokenizer, asked, OTHER), (), ()),
    ]
    metrics = length_metrics(tokenizer, groups, "R1")
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in ("so it is", "8")]
    sizes = [len(one.group.responses[0].token_ids) for one in groups]
    assert metrics["reasoning/length"] == pytest.approx(np.mean(lengths))
    assert metrics["reasoning/share"] == pytest.approx(np.mean(np.divide(lengths, sizes)))
    assert metrics["think_length/mean"] == pytest.approx(sum(lengths) / 3), "the reference's counts wrong tags as 0"
    assert "reasoning/length" not in length_metrics(
        tokenizer, [ScoredGroup(group(tokenizer, asked, BAD), (), ())], "R1"
    )
