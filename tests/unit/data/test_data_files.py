"""Data files: what a good one becomes, and that every broken one is refused with file, row and key."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_rows import row

from megatron_rlpr.data.dataset import load_prompts, samples_per_prompt
from megatron_rlpr.data.parquet import read_rows
from megatron_rlpr.data.prompt_templates import TEMPLATES
from megatron_rlpr.types import UserError

Write = Callable[[str, list[dict[str, Any]]], Path]
LONG = "Explain this at length. " * 60


def test_files_are_concatenated_and_rows_keep_their_number(write: Write, tokenizer: Any) -> None:
    files = [
        write("a.parquet", [row("one"), row(LONG), row("two")]),
        write("b.parquet", [row(LONG), row("three", "3")]),
    ]
    loaded = load_prompts(files, tokenizer, 40)
    assert [(p.index, p.messages[-1]["content"]) for p in loaded.prompts] == [(0, "one"), (2, "two"), (4, "three")]
    assert loaded.dropped == 2
    last = loaded.prompts[-1]
    assert last.reference_answer == "3"
    assert last.data_source == "unit"
    assert last.extra == {"ability": "maths", "extra_info": {"index": 5}, "reward_model": {"style": "rule"}}


def test_a_prompt_is_the_template_with_the_generation_prompt(write: Write, tokenizer: Any) -> None:
    (prompt,) = load_prompts([write("a.parquet", [row()])], tokenizer, 100).prompts
    assert (
        tokenizer.decode(prompt.token_ids)
        == "<|im_start|>user\nWhat is six times seven?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_templates_own_special_tokens_are_the_only_ones(write: Write, gemma_like_tokenizer: Any) -> None:
    (prompt,) = load_prompts([write("a.parquet", [row("hi")])], gemma_like_tokenizer, 100).prompts
    assert prompt.token_ids.count(gemma_like_tokenizer.bos_token_id) == 1


def test_a_prompt_of_exactly_the_limit_is_kept(write: Write, tokenizer: Any) -> None:
    file = write("a.parquet", [row()])
    length = len(load_prompts([file], tokenizer, 1000).prompts[0].token_ids)
    assert len(load_prompts([file], tokenizer, length)) == 1
    with pytest.raises(UserError, match=f"all 1 rows are longer than {length - 1} tokens"):
        load_prompts([file], tokenizer, length - 1)


def test_evaluation_refuses_a_long_prompt_with_file_and_row(write: Write, tokenizer: Any) -> None:
    files = [write("a.parquet", [row()]), write("b.parquet", [row(), row(LONG)])]
    with pytest.raises(UserError, match=r"b\.parquet, row 1: the prompt has \d+ tokens, more than the limit of 40"):
        load_prompts(files, tokenizer, 40, overlong="refuse")


def test_only_the_first_rows_are_read_on_request(write: Write, tokenizer: Any) -> None:
    files = [write("a.parquet", [row("a"), row("b")]), write("b.parquet", [row("c"), row("d")])]
    assert [p.messages[0]["content"] for p in load_prompts(files, tokenizer, 100, limit=3).prompts] == ["a", "b", "c"]


def test_the_rewrite_sees_the_file_a_row_is_from(write: Write, tokenizer: Any) -> None:
    system = {"role": "system", "content": "Think first."}
    rows = [row(prompt=[system, {"role": "user", "content": "Q"}])]
    files = [write("train.parquet", rows), write("MMLUPro-1000_Avg2.parquet", rows)]
    rewritten = load_prompts(files, tokenizer, 200, rewrite=TEMPLATES["llama_gemma"].rewrite).prompts
    assert [len(p.messages) for p in rewritten] == [1, 1]
    assert "only provide the letter" not in rewritten[0].messages[0]["content"]
    assert rewritten[1].messages[0]["content"].endswith("only provide the letter of the answer in the tags.")
    assert "<answer> </answer>" in tokenizer.decode(rewritten[0].token_ids)
    untouched = load_prompts(files, tokenizer, 200, rewrite=TEMPLATES["as_is"].rewrite).prompts
    assert untouched[0].messages[0] == system


def test_a_rewrite_keeps_a_question_without_system_message() -> None:
    rewrite = TEMPLATES["llama_gemma"].rewrite
    assert rewrite(({"role": "user", "content": "Q"},), "f")[0]["content"].startswith("Q\nPlease reason step by step")
    with pytest.raises(UserError, match="only a system message"):
        rewrite(({"role": "system", "content": "S"},), "f.parquet")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"reward_model": {"ground_truth": ""}}, r"reward_model\.ground_truth is empty"),
        ({"reward_model": {"ground_truth": " \n"}}, r"reward_model\.ground_truth is empty"),
        ({"reward_model": {"style": "rule"}}, r"reward_model\.ground_truth is missing"),
        ({"reward_model": {"ground_truth": None, "style": "rule"}}, r"reward_model\.ground_truth is missing"),
        ({"reward_model": {"ground_truth": 42}}, r"reward_model\.ground_truth is 42, expected a text"),
        ({"reward_model": "42"}, "reward_model is '42', expected a mapping"),
        ({"prompt": "What?"}, "prompt is 'What\\?', expected a non-empty list of chat messages"),
        ({"prompt": []}, "expected a non-empty list of chat messages"),
        ({"prompt": [{"role": "user"}]}, "expected a non-empty list of chat messages"),
        ({"prompt": [{"role": "user", "content": None}]}, "expected a non-empty list of chat messages"),
        ({"data_source": None}, "data_source is None"),
        ({"data_source": ""}, "data_source is ''"),
    ],
)
def test_a_broken_row_is_refused_with_file_row_and_key(write: Write, broken: dict[str, Any], message: str) -> None:
    file = write("broken.parquet", [row(**broken)])
    with pytest.raises(UserError, match=rf"broken\.parquet, row 0: .*{message}"):
        read_rows(file)


def test_the_number_of_the_broken_row_is_told(write: Write) -> None:
    with pytest.raises(UserError, match=r"f\.parquet, row 2: reward_model\.ground_truth is empty"):
        read_rows(write("f.parquet", [row(), row(), row(answer="")]))


@pytest.mark.parametrize("column", ["prompt", "data_source", "reward_model"])
def test_a_missing_column_is_named(write: Write, column: str) -> None:
    rows = [{name: value for name, value in row().items() if name != column}]
    with pytest.raises(UserError, match=rf"f\.parquet: column '{column}' is missing \(found: .*ability"):
        read_rows(write("f.parquet", rows))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.parquet: no such data file"):
        read_rows(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"text\.parquet: cannot be read as parquet"):
        read_rows(tmp_path / "text.parquet")


def test_a_template_that_refuses_a_role_names_file_row_and_fix(write: Write, tokenizer: Any) -> None:
    strict = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok"
    )
    bad = row(prompt=[{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])
    with pytest.raises(UserError, match=r"f\.parquet, row 1: .*System role not supported.*template=llama_gemma"):
        load_prompts([write("f.parquet", [row(), bad])], strict, 100)


def test_other_columns_are_kept_as_json_knows_them(write: Write) -> None:
    stamp = pd.Timestamp("2024-02-29T12:30:00.000000001Z")
    (read,) = read_rows(write("f.parquet", [row(when=stamp, price=Decimal("1.50"), raw=b"\xff", took=stamp - stamp)]))
    kept = {name: read.extra[name] for name in ("when", "price", "raw", "took")}
    assert kept == {
        "when": "2024-02-29T12:30:00.000000001+00:00",
        "price": "1.50",
        "raw": "ff",
        "took": "0 days 00:00:00",
    }


def test_an_empty_file_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    pd.DataFrame([row()]).iloc[:0].to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="the files hold no rows"):
        load_prompts([tmp_path / "empty.parquet"], tokenizer, 100)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("AIME2024_Avg16.parquet", 16),
        ("data/Math-500_Avg2.parquet", 2),
        ("Avg4/test.parquet", 1),
        ("held_out.parquet", 1),
        ("x_Avg0.parquet", 1),
    ],
)
def test_samples_per_prompt_stand_in_the_file_name(name: str, samples: int) -> None:
    assert samples_per_prompt(name) == samples
