"""A prompt's head is tokenised once; what follows it must be tokenised as if the whole text had been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout_records import prompt

from megatron_rlpr.reward.prompt_heads import PromptHeads


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(continuation=st.text(max_size=40))
def test_head_and_tail_are_tokenised_like_the_whole(tokenizer: Any, continuation: str) -> None:
    question = prompt(tokenizer)
    (split,) = PromptHeads(tokenizer).split([question])
    assert split.head_ids, "a templated prompt holds a special token"
    assert tokenizer.decode(question.token_ids) == tokenizer.decode(split.head_ids) + split.tail_text
    rest = tokenizer(split.tail_text + continuation, add_special_tokens=False)["input_ids"]
    whole = tokenizer(tokenizer.decode(question.token_ids) + continuation, add_special_tokens=False)["input_ids"]
    assert [*split.head_ids, *rest] == whole


def test_a_prompt_that_the_tokenizer_would_write_differently_has_no_head(tokenizer: Any) -> None:
    question = prompt(tokenizer)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    written_apart = replace(question, token_ids=(*letters, *question.token_ids))
    (split,) = PromptHeads(tokenizer).split([written_apart])
    assert split.head_ids == ()
    assert split.tail_text == tokenizer.decode(written_apart.token_ids)


def test_a_prompt_without_special_tokens_has_no_head(tokenizer: Any) -> None:
    plain = tuple(tokenizer("What is six times seven?", add_special_tokens=False)["input_ids"])
    (split,) = PromptHeads(tokenizer).split([replace(prompt(tokenizer), token_ids=plain)])
    assert split.head_ids == ()
