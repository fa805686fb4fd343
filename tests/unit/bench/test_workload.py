"""The groups a benchmark works on have the sizes that were asked for, whatever their tokens are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.types import UserError
from tools.bench.workload import ANSWER_TOKENS, Sizes, make_groups, random_tokens, text_tokens

sizes = st.builds(
    Sizes,
    groups=st.integers(1, 4),
    n=st.integers(1, 6),
    prompt=st.integers(1, 300),
    response=st.integers(ANSWER_TOKENS + 2, 400),
    reference=st.integers(1, 9),
)


class CharacterTokenizer:
    """One token a character."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 5))
def test_lengths_stay_within_their_spread(sizes: Sizes, seed: int) -> None:
    groups = make_groups(sizes, random_tokens(1000, seed), seed)
    assert len(groups) == sizes.groups
    for group in groups:
        assert 0.87 * sizes.prompt - 1 <= len(group.prompt) <= 1.13 * sizes.prompt + 1
        assert len(group.reasonings) == len(group.answers) == sizes.n
        assert max(1, sizes.reference - 1) <= len(group.reference) <= sizes.reference + 1
        for response in group.responses:
            assert 0.84 * sizes.response - 1 <= response.stop - response.start <= 1.16 * sizes.response + ANSWER_TOKENS


@settings(max_examples=20, deadline=None)
@given(sizes=sizes)
def test_a_spliced_sequence_differs_from_its_response_in_the_answer_alone(sizes: Sizes) -> None:
    for group in make_groups(sizes, random_tokens(1000)):
        for response, spliced, reasoning in zip(group.responses, group.spliced, group.reasonings, strict=True):
            shared = len(group.prompt) + len(reasoning)
            assert response.token_ids[:shared] == spliced.token_ids[:shared] == group.prompt + reasoning
            assert spliced.token_ids[spliced.start : spliced.stop] == group.reference
            assert (response.start, response.stop) == (len(group.prompt), len(response.token_ids))


def test_lengths_do_not_depend_on_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"question": "how much? " * 300, "rows": 3}))
    some = Sizes(groups=2, n=3, prompt=50, response=60, reference=4)
    with_text = make_groups(some, text_tokens(tmp_path, CharacterTokenizer()))
    with_ids = make_groups(some, random_tokens(50))
    assert [[len(r.token_ids) for r in g.responses] for g in with_text] == [
        [len(r.token_ids) for r in g.responses] for g in with_ids
    ]
    assert {chr(token) for token in with_text[0].prompt} <= set("how much? ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no \\*.jsonl file"),
        ("{nonsense", "line 1 is not JSON"),
        ('{"a": "short"}', "tokens in a row|in a row are needed"),
    ],
)
def test_a_folder_without_enough_text_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "text.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        text_tokens(tmp_path, CharacterTokenizer())(100)
