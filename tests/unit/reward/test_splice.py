"""Both splice modes: which responses can be spliced, what is scored, and that sampled tokens are left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout_records import TOKENIZERS, prompt, response, response_of_ids

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.tokenizer import load_tokenizer, overlapping_tokens
from megatron_rlpr.reward.answer_tags import find_answer_slot, strip_padding
from megatron_rlpr.reward.splice import Splice, SpliceLimits, splice_texts
from megatron_rlpr.reward.splice_tokens import find_tag_tokens, splice_tokens
from megatron_rlpr.types import Prompt, Response

LIMITS = SpliceLimits(600, 600)
MODES = {"text": splice_texts, "tokens": splice_tokens}
modes = pytest.mark.parametrize("mode", list(MODES))
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def splice_one(
    mode: str, tokenizer: Any, question: Prompt, answer: Response, limits: SpliceLimits = LIMITS, **config: Any
) -> Splice:
    return MODES[mode](tokenizer, [(question, answer)], RewardConfig(**config), limits)[0]


def scored_text(tokenizer: Any, splice: Splice) -> str:
    return str(tokenizer.decode(splice.token_ids[splice.start : splice.stop]))


@modes
@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("<think> r </think> <answer> 41 </answer>", "<answer> "),
        ("<think> r </think>\n<answer>\n41\n</answer>", "<answer>\n"),
        ("<think> r </think> <answer>41", "<answer> "),
        ("Well. <think> r </think> so <answer> $41$ </answer> tail", "so <answer> "),
        ("<think> r </think> <answer>$41$</answer>", "<answer> "),
        ("<think> r </think> <answer></answer>", "<answer> "),
        ("<think> r </think> <answer>\r\n\t 41</answer>", "<answer>\r\n\t "),
        ("<think> a </answer> b </think> <answer> 41 </answer>", "<answer> "),
    ],
)
def test_the_reference_answer_takes_the_place_of_the_generated_one(
    tokenizer: Any, mode: str, text: str, before: str
) -> None:
    splice = splice_one(mode, tokenizer, prompt(tokenizer), response(tokenizer, text))
    assert splice.valid
    whole = tokenizer.decode(splice.token_ids)
    assert whole.endswith(before + "42 </answer>" + tokenizer.eos_token)
    assert whole.startswith(tokenizer.decode(prompt(tokenizer).token_ids))
    assert scored_text(tokenizer, splice).strip() == "42"
    request = splice.request()
    assert request is not None
    assert len(request.token_ids) == request.stop


@modes
@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "<think> r </think> 41 </answer>",
        "r </think> <answer> 41 </answer>",
        "<think> r <answer> 41 </answer>",
        "<think> a <think> b </think> <answer> 41 </answer>",
        "<think> r </think> <answer> 41 </answer> <answer> 42 </answer>",
        "<answer> 41 </answer> <think> r </think>",
        "<think> r </think> <answer>",
    ],
)
def test_responses_without_a_place_for_the_answer_are_not_scored(tokenizer: Any, mode: str, text: str) -> None:
    for ends in (True, False):
        assert splice_one(mode, tokenizer, prompt(tokenizer), response(tokenizer, text, ends)).request() is None


@modes
def test_without_think_tags_one_answer_tag_is_enough(tokenizer: Any, mode: str) -> None:
    for text in ("I say <answer> 41 </answer>", "<think> a <think> <answer> 41"):
        splice = splice_one(mode, tokenizer, prompt(tokenizer), response(tokenizer, text), format_mode="R1_nothink")
        assert scored_text(tokenizer, splice).strip() == "42"


@modes
@pytest.mark.parametrize(
    "answer",
    ["use <answer> tags", "a </answer> b", "<think> x </think>", " 42", "42 ", "x\ny", "é", "答案 是 对", "🙂🙃"],
)
def test_any_reference_answer_is_found_where_it_was_put(tokenizer: Any, mode: str, answer: str) -> None:
    splice = splice_one(
        mode, tokenizer, prompt(tokenizer, answer), response(tokenizer, "<think> r </think> <answer> 41 </answer>")
    )
    assert splice.valid
    assert answer.strip() in scored_text(tokenizer, splice)
    assert len(scored_text(tokenizer, splice).strip()) <= len(answer.strip()) + 1


def test_a_character_cut_between_prompt_and_response_is_whole_in_the_spliced_text(tokenizer: Any) -> None:
    pieces = tokenizer("\U0001f9a9", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1, "the tokenizer has no token for this character"
    question = prompt(tokenizer)
    cut_question = replace(question, token_ids=(*question.token_ids, *pieces[:1]))
    rest = [*pieces[1:], *tokenizer(" <think> r </think> <answer> 41 </answer>", add_special_tokens=False)["input_ids"]]
    splice = splice_one("text", tokenizer, cut_question, response_of_ids(tokenizer, rest))
    assert tokenizer.decode(splice.token_ids).startswith(tokenizer.decode(question.token_ids) + "\U0001f9a9 <think>")


def test_a_token_that_runs_from_the_tag_into_the_answer_is_not_kept() -> None:
    tokenizer = load_tokenizer(str(TOKENIZERS / "bpe_chat"))
    tokenizer.add_tokens([">$", "> \n"])
    question = prompt(tokenizer)
    into_answer = response(tokenizer, "<think> r </think> <answer>$41$ </answer>")
    splice = splice_one("tokens", tokenizer, question, into_answer)
    assert tokenizer.decode(splice.token_ids).endswith("<think> r </think> <answer> 42 </answer><|im_end|>")
    assert scored_text(tokenizer, splice) == "42"
    into_space = response(tokenizer, "<think> r </think> <answer> \n 41 </answer>")
    splice = splice_one("tokens", tokenizer, question, into_space)
    assert tokenizer.decode(splice.token_ids).endswith("<think> r </think> <answer> \n 42 </answer><|im_end|>")
    assert tokenizer.convert_tokens_to_ids("> \n") in splice.token_ids, (
        "white space the tag's last token holds stays with it"
    )


@modes
def test_the_token_after_the_answer_can_be_scored_too(tokenizer: Any, mode: str) -> None:
    answer = response(tokenizer, "<think> r </think> <answer>\n41\n</answer>")
    plain = splice_one(mode, tokenizer, prompt(tokenizer), answer)
    one_more = splice_one(mode, tokenizer, prompt(tokenizer), answer, gt_tokens_one_more=True)
    assert one_more.stop - one_more.start == plain.stop - plain.start + 1
    assert tokenizer.decode(one_more.token_ids).endswith("42\n</answer>" + tokenizer.eos_token), (
        "the response's own white space is kept"
    )


@modes
def test_an_empty_white_space_is_kept_on_request(tokenizer: Any, mode: str) -> None:
    answer = response(tokenizer, "<think> r </think> <answer>41</answer>")
    splice = splice_one(mode, tokenizer, prompt(tokenizer), answer, allow_empty_leading_whitespaces=True)
    assert "<answer>42 </answer>" in tokenizer.decode(splice.token_ids)


@modes
def test_a_sequence_over_the_limit_is_not_scored_and_its_neighbours_are(tokenizer: Any, mode: str) -> None:
    question, fits = prompt(tokenizer), response(tokenizer, "<think> r </think> <answer> 41 </answer>")
    long = response(tokenizer, "<think>" + " r" * 300 + "</think> <answer> 41 </answer>")
    limits = SpliceLimits(len(question.token_ids), 60)
    short_splice, long_splice = MODES[mode](tokenizer, [(question, fits), (question, long)], RewardConfig(), limits)
    assert short_splice.valid
    assert not long_splice.valid


@modes
def test_a_long_reference_answer_is_scored_within_the_response_window(tokenizer: Any, mode: str) -> None:
    question = prompt(tokenizer, "word " * 80)
    splice = splice_one(
        mode,
        tokenizer,
        question,
        response(tokenizer, "<think> r </think> <answer> 41 </answer>"),
        SpliceLimits(600, 30),
    )
    assert splice.stop - splice.answer_tag == 30


def test_a_batch_is_spliced_like_its_members(tokenizer: Any) -> None:
    texts = ["<think> r </think> <answer> 41 </answer>", "nothing", "<think>\nq\n</think><answer>\n1\n</answer>"]
    pairs = [(prompt(tokenizer), response(tokenizer, text)) for text in texts]
    for splice in MODES.values():
        assert splice(tokenizer, pairs, RewardConfig(), LIMITS) == [
            splice(tokenizer, [pair], RewardConfig(), LIMITS)[0] for pair in pairs
        ]


fragments = st.lists(
    st.one_of(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "$", "41"]), st.text(max_size=8)
    ),
    max_size=12,
).map("".join)


@relaxed
@given(thinking=fragments, section=fragments, reference=st.text(min_size=1, max_size=20).filter(str.strip))
def test_token_mode_leaves_the_sampled_prefix_untouched(
    tokenizer: Any, thinking: str, section: str, reference: str
) -> None:
    question = prompt(tokenizer, reference)
    answer = response(tokenizer, f"<think>{thinking}</think> <answer>{section}")
    splice = splice_one("tokens", tokenizer, question, answer)
    if not splice.valid:
        return
    sampled = question.token_ids + answer.token_ids
    assert splice.token_ids[: splice.answer_tag] == sampled[: splice.answer_tag]
    kept = tokenizer.decode(answer.token_ids[: splice.answer_tag - len(question.token_ids)])
    assert len(answer.text[: answer.text.rindex("<answer>")]) - len(kept) <= 8, (
        "only the token that opens the tag may be lost"
    )
    assert splice.answer_tag <= splice.start < splice.stop


@relaxed
@given(data=st.data())
def test_any_sampled_tokens_can_be_spliced_or_refused(tokenizer: Any, data: st.DataObject) -> None:
    tag = tokenizer("<think> r </think> <answer> 4", add_special_tokens=False)["input_ids"]
    noise = st.lists(st.integers(0, len(tokenizer) - 1), max_size=20)
    ids = data.draw(noise) + tag + data.draw(noise)
    for mode in MODES:
        splice = splice_one(mode, tokenizer, prompt(tokenizer), response_of_ids(tokenizer, ids))
        if splice.valid:
            assert "42" in scored_text(tokenizer, splice)


@relaxed
@given(before=fragments, after=st.text(max_size=30).filter(lambda text: "<answer>" not in text))
def test_the_tag_is_found_in_the_tokens(tokenizer: Any, before: str, after: str) -> None:
    ids = tokenizer(f"{before}<answer>{after}", add_special_tokens=False)["input_ids"]
    tag = find_tag_tokens(tokenizer, ids)
    assert tag is not None
    assert tag.text.endswith("<answer>")
    assert tokenizer.decode(ids[tag.start : tag.stop]) == tag.text + tag.overhang
    assert "<answer>" not in tokenizer.decode(ids[tag.start + 1 :]), "it is the last tag"
    assert "<answer>" not in tokenizer.decode(ids[tag.start : tag.stop - 1]), "no token too many"


@relaxed
@given(text=st.text(min_size=1, max_size=40), data=st.data())
def test_overlapping_tokens_are_those_that_share_a_character(tokenizer: Any, text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    touching = [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < stop and last > start]
    first, last = overlapping_tokens(encoded.encodings[0], start, stop)
    assert list(range(first, last)) == touching


def test_padding_text_is_stripped_at_both_ends_only() -> None:
    assert strip_padding("<p><p>a<p>b<p>", "<p>") == "a<p>b"
    assert strip_padding("<p><p>", "<p>") == ""
    assert strip_padding("ab", "") == "ab"


def test_the_slot_knows_the_white_space_around_the_answer() -> None:
    slot = find_answer_slot("<answer> \n x\t</answer>", "R1_nothink", "<eos>", "<pad>")
    assert slot is not None
    assert (slot.leading, slot.trailing) == (" \n ", "\t")
    unclosed = find_answer_slot("<answer>\u00a0x", "R1_nothink", "<eos>", "<pad>")
    assert unclosed is not None
    assert (unclosed.leading, unclosed.trailing) == ("", None), "a no-break space belongs to the answer"
