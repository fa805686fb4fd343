"""The stored table of base probabilities: survives a restart exactly, and what was made for other data or settings is
made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rlpr.reward.base_probability import BaseProbabilityTable, base_requests
from megatron_rlpr.types import Prompt, UserError

SETTINGS = {"compute_score_name": "mean_exp_log_softmax", "temperature": 1.0}
PROMPTS = [Prompt(index, (1, 2, index), (), f"answer {index}", "unit") for index in (3, 0, 7)]


def filled(path: Path) -> BaseProbabilityTable:
    table = BaseProbabilityTable(SETTINGS, path)
    for prompt in PROMPTS[:2]:
        table.record(prompt, 0.1 + prompt.index / 3)
    return table


def test_a_table_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "run" / "base.json"
    filled(path).save()
    table = BaseProbabilityTable.load(SETTINGS, path)
    assert [table.probability(prompt) for prompt in PROMPTS[:2]] == [0.1 + 1.0, 0.1]
    assert table.missing(PROMPTS) == [PROMPTS[2]]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["base.json"], "nothing unfinished is left"


def test_where_nothing_is_stored_everything_is_missing(tmp_path: Path) -> None:
    assert BaseProbabilityTable.load(SETTINGS, tmp_path / "base.json").missing(PROMPTS) == PROMPTS


def test_a_window_without_room_for_the_answer_is_named_and_not_the_answer(tokenizer: Any) -> None:
    prompt = Prompt(4, tuple(tokenizer("2+2=", add_special_tokens=False)["input_ids"]), (), "\n4", "unit")
    (request,) = base_requests(tokenizer, [prompt], 10)
    assert request.start < request.stop
    with pytest.raises(UserError, match=r"data\.max_response_length=1 leaves no room .*\(prompt 4\): raise it"):
        base_requests(tokenizer, [prompt], 1)


def test_a_prompt_that_was_never_scored_has_no_probability(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="7"):
        filled(tmp_path / "base.json").probability(PROMPTS[2])


@pytest.mark.parametrize("change", [{"reference_answer": "another"}, {"token_ids": (1, 2, 4)}])
def test_another_prompt_under_the_same_index_is_missing(change: dict[str, object], tmp_path: Path) -> None:
    table, other = filled(tmp_path / "base.json"), replace(PROMPTS[0], **change)
    assert table.missing([other, PROMPTS[1]]) == [other]
    with pytest.raises(KeyError):
        table.probability(other)
    table.record(other, 0.25)
    assert table.probability(other) == 0.25


def test_under_other_settings_everything_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    filled(path).save()
    assert BaseProbabilityTable.load({**SETTINGS, "temperature": 0.6}, path).missing(PROMPTS) == PROMPTS


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": {}, "entries": {"x": 1}}'])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"base\.json: no readable table"):
        BaseProbabilityTable.load({}, path)
