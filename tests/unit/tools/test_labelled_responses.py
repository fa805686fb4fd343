"""Labelled responses as a file, and as the groups that a policy would have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_rlpr.types import UserError
from tools.labelled_responses import LabelledGroups, labelled_groups, read_labelled

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def grouped(tokenizer: Any, file: Path, longest: int = 500, **settings: Any) -> LabelledGroups:
    return labelled_groups(tokenizer, read_labelled(file), file, longest, **settings)


def row(question: str, response: str, **fields: Any) -> dict[str, Any]:
    return {"question": question, "response": response, "reference": "two", "correct": True, **fields}


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_responses_to_a_question_become_a_group_in_the_format(tokenizer: Any, tmp_path: Path) -> None:
    options = ["one", "two"]
    rows = (
        row("1+1?", "We add. The answer is (B).", options=options, pred="B"),
        row("alone?", "nobody"),
        row("1+1?", "First line.\nSo three", correct=False),
    )
    labelled = grouped(tokenizer, write(tmp_path / "r.jsonl", *rows), at_least=2, limit=10)
    (group,) = labelled.groups
    texts = [response.text.removesuffix(tokenizer.eos_token) for response in group.responses]
    assert texts == [
        "<think> We add. </think> <answer> two </answer>",
        "<think> First line.\nSo three </think> <answer> So three </answer>",
    ]
    assert labelled.correct == (True, False)
    assert group.prompt.reference_answer == "two"
    assert tokenizer.decode(group.responses[0].token_ids) == group.responses[0].text


def test_the_limit_and_the_length_leave_whole_groups(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row(f"{n}?", f"thought {m}" * (200 if n == 1 and m else 1)) for n in range(4) for m in range(2)]
    file = write(tmp_path / "r.jsonl", *rows)
    kept = grouped(tokenizer, file, 300, at_least=2, limit=5)
    assert [group.prompt.messages[0]["content"] for group in kept.groups] == ["0?", "2?"]
    with pytest.raises(UserError, match="no question has two responses of at most 5 tokens"):
        grouped(tokenizer, file, 5, at_least=2, limit=8)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2: it is no JSON"),
        ("[" * 100_000, "line 2: it is no JSON"),
        ('{"question": "?"}', "line 2: response, reference, correct is missing"),
        (json.dumps(row("?", "!", correct=1)), "line 2: correct is 1, expected true or false"),
        (json.dumps(row("", "!")), "line 2: question is '', expected a text"),
        (json.dumps(row("?", "!", category=3)), "line 2: category is 3, expected a text"),
        (json.dumps(row("?", "half \ud800")), "line 2: response holds half of a surrogate pair"),
        (json.dumps(row("?", "!", options="AB")), "line 2: options is 'AB', expected a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(row("?", "!")) + "\n" + line)
    with pytest.raises(UserError, match=fault):
        read_labelled(file)


def test_alone_or_with_another_reference_a_response_is_a_group_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    rows = (row("1+1?", "a"), row("alone?", "b"), row("1+1?", "c", reference="ten", correct=False), row("1+1?", "d"))
    labelled = grouped(tokenizer, write(tmp_path / "r.jsonl", *rows))
    assert [group.prompt.reference_answer for group in labelled.groups] == ["two", "two", "ten"]
    assert [one.line for one in labelled.rows] == [1, 4, 2, 3]
    assert [len(group.responses) for group in labelled.groups] == [2, 1, 1]


def test_too_long_lines_are_counted_and_a_file_of_them_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", row("?", "so " * 300), row("?", "short"))
    labelled = grouped(tokenizer, file, 200)
    assert (len(labelled.rows), labelled.longer) == (1, 1)
    with pytest.raises(UserError, match="no response of at most 10 tokens"):
        grouped(tokenizer, file, 10)
