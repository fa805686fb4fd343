"""What a validation stores: pieces that survive a kill, one table at the end, and a CSV that executes nothing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.evaluation.answers import SCHEMA, Answers, csv_text
from megatron_rlpr.types import UserError


def rows(*prompts: int, **columns: Any) -> list[dict[str, Any]]:
    """Two answers to each of the prompts."""
    texts = dict.fromkeys(SCHEMA.names, "text")
    numbers = {"accuracy": 1.0, "format": 0.0, "reward": None, "reference_probability": 0.5, "response_tokens": 3}
    return [
        {**texts, **numbers, **columns, "prompt_row": prompt, "sample": sample}
        for prompt in prompts
        for sample in (0, 1)
    ]


def test_pieces_become_one_table_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    stored = Answers(tmp_path, "set.greedy", {"weights": "a"})
    stored.add(rows(2, 3), {"graders": Counter({"time limit": 1})})
    (tmp_path / f".set.greedy.{stored.key}" / ".from_000000.parquet.77.tmp").write_text("what a kill left")
    again = Answers(tmp_path, "set.greedy", {"weights": "a"})
    assert again.finished() == {2, 3}
    again.add(rows(0, 1), {"graders": Counter({"time limit": 2})})
    complete, failures = again.complete()
    assert [(row["prompt_row"], row["sample"]) for row in complete] == [(p, s) for p in range(4) for s in (0, 1)]
    assert failures == {"graders": Counter({"time limit": 3})}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.greedy.csv", "set.greedy.parquet"]
    assert pq.read_table(tmp_path / "set.greedy.parquet").to_pylist() == complete
    assert again.finished() == {0, 1, 2, 3}
    assert again.complete() == (complete, failures)


def test_answers_of_other_weights_or_settings_are_not_mixed_in(tmp_path: Path) -> None:
    first = Answers(tmp_path, "set.greedy", {"weights": "a", "seed": 1})
    first.add(rows(0), {})
    for made_from in ({"weights": "b", "seed": 1}, {"weights": "a", "seed": 2}):
        assert Answers(tmp_path, "set.greedy", made_from).finished() == set()
    first.complete()
    other = Answers(tmp_path, "set.greedy", {"weights": "b"})
    assert other.finished() == set()
    other.add(rows(0, response="new"), {})
    assert first.finished() == {0}, "until the new table is complete the old one stays"
    assert other.complete()[0][0]["response"] == "new"
    assert first.finished() == set()


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    stored = Answers(tmp_path, "set.greedy", {})
    stored.add(rows(0), {})
    (piece,) = (tmp_path / f".set.greedy.{stored.key}").iterdir()
    piece.write_bytes(piece.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"from_000000\.parquet: stored answers cannot be read .*remove the file"):
        stored.finished()


@given(st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", "＝", " ", ""]), st.text(st.characters(codec="utf-8")))
def test_no_cell_of_the_csv_begins_like_a_formula(start: str, rest: str) -> None:
    (_, *read) = csv.reader(io.StringIO(csv_text(rows(0, response=start + rest, accuracy=-1.0)), newline=""))
    column = SCHEMA.names.index("response")
    for cells in read:
        assert not cells[column].lstrip().startswith(tuple("=+-@＝"))
        assert cells[column].removeprefix("'") in ((start + rest), (start + rest).removeprefix("'"))
        assert cells[SCHEMA.names.index("accuracy")] == "-1.0", "numbers stay numbers"
