"""The quickstart's data: right answers, balanced families, and held-out facts that no training question asks for."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.data.parquet import read_rows
from megatron_rlpr.grading.format import format_score
from megatron_rlpr.reward.answer_tags import extract_answer
from megatron_rlpr.system.sealed_folder import problems
from megatron_rlpr.types import UserError
from tools.prepare_data import quickstart
from tools.prepare_data.quickstart import assert_disjoint, draw
from tools.quickstart_prompt import EXAMPLES, SYSTEM, messages
from tools.quickstart_tasks import TASKS, Question, is_held_out
from tools.quickstart_words import MONTHS, OPPOSITES, pairs

ROOT = Path(__file__).parents[3]
SEEDS = st.integers(0, 10**6)
ALL = {task.name: task.enumerate() for task in TASKS}
PER_TASK = {"train": 103, "val": 24}


@pytest.mark.parametrize("task", ALL)
def test_a_family_has_enough_different_questions_on_both_sides(task: str) -> None:
    assert len({question.text for question in ALL[task]}) == len(ALL[task])
    held_out = sum(is_held_out(question.fact) for question in ALL[task])
    assert held_out >= PER_TASK["val"]
    assert len(ALL[task]) - held_out >= PER_TASK["train"]


@pytest.mark.parametrize("task", ALL)
def test_answers_are_short_and_not_given_away_by_an_equal_question(task: str) -> None:
    for question in ALL[task]:
        assert 1 <= len(question.answer) <= 16, question
        assert question.answer == question.answer.strip()


@pytest.mark.parametrize("task", ["chain_sum", "subtraction", "word_add", "word_sub", "word_mul"])
def test_arithmetic_answers_are_what_the_fact_says(task: str) -> None:
    for question in ALL[task]:
        left, sign, right = question.fact.split()
        a, b = int(left), int(right)
        assert int(question.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign], question
        assert {left, right} <= set(question.text.replace("?", " ").replace(".", " ").split()), question


def test_units_months_and_opposites_are_consistent() -> None:
    for question in ALL["unit"]:
        assert int(question.answer) % int(question.fact.split()[0]) == 0, question
    following = {question.fact: question.answer for question in ALL["month_after"]}
    assert [following[month] for month in MONTHS] == [*MONTHS[1:], MONTHS[0]]
    every_word = [*OPPOSITES, *OPPOSITES.values()]
    assert not [word for word, times in Counter(every_word).items() if times > 1], (
        "a word with two opposites has no one answer"
    )


def test_a_word_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="1 words are listed twice"):
        pairs("a:b c:d a:e")


@settings(deadline=None, max_examples=50)
@given(train_seed=SEEDS, val_seed=SEEDS)
def test_held_out_facts_are_never_trained_on_whatever_the_seeds(train_seed: int, val_seed: int) -> None:
    train, val = draw("train", 1024, train_seed), draw("val", 240, val_seed)
    assert_disjoint(train, val)
    vocabulary = {task.name for task in TASKS if task.vocabulary}
    for name in vocabulary:
        asked = [{question.fact for question in split if question.task == name} for split in (train, val)]
        assert all(asked)
        assert not asked[0] & asked[1]


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 1030), seed=SEEDS)
def test_families_are_balanced_in_every_prefix(count: int, seed: int) -> None:
    questions = draw("train", count, seed)
    assert len(questions) == count
    for length in (count, count // 2, min(count, 10)):
        counts = Counter(question.task for question in questions[:length])
        assert max(counts.values(), default=0) - min((counts[task.name] for task in TASKS), default=0) <= 1


def test_a_seed_fixes_the_questions() -> None:
    assert draw("train", 300, 5) == draw("train", 300, 5)
    assert draw("train", 300, 5) != draw("train", 300, 6)


def question(text: str = "q?", fact: str = "f") -> Question:
    return Question("task", "ability", text, "a", fact)


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        ([question("a?", "f")], [question("b?", "f")], "facts in both"),
        ([question("a?", "f")], [question("a?", "g")], "asked more than once"),
        ([question("a?", "f"), question("a?", "f")], [], "asked more than once"),
        ([question(EXAMPLES[2][0])], [], "worked examples"),
    ],
)
def test_an_overlap_is_an_error(train: list[Question], val: list[Question], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert_disjoint(train, val)


def test_worked_examples_have_the_format_that_is_rewarded() -> None:
    for (_, answered), expected in zip(EXAMPLES, ("4", "Oslo", "18", "river"), strict=True):
        assert format_score(answered, "R1") == 1.0
        assert extract_answer(answered) == expected
        assert not any(space in answered for space in ("\n", "> ", " <"))


def test_a_prompt_is_system_examples_question() -> None:
    turns = messages("Why?")
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * len(EXAMPLES), "user"]
    assert turns[0]["content"] == SYSTEM
    assert turns[-1]["content"] == "Why?"


def test_files_have_the_reference_schema(tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert quickstart.prepare(out, 57, 23, seed=1)
    assert problems(out) == []
    for split, count in (("train", 57), ("val", 23)):
        rows = read_rows(out / f"{split}.parquet")
        drawn = draw(split, count, seed=1)
        for index, (row, expected) in enumerate(zip(rows, drawn, strict=True)):
            assert row.messages == tuple(messages(expected.text))
            assert (row.reference_answer, row.data_source) == (expected.answer, f"quickstart/{expected.task}")
            assert row.extra == {
                "ability": expected.ability,
                "extra_info": {"index": index, "split": split},
                "reward_model": {"style": "rule"},
            }


def test_the_same_arguments_give_the_same_bytes_and_are_not_repeated(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert quickstart.prepare(tmp_path / name, 40, 20, seed=2)
    for split in ("train", "val"):
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (tmp_path / "b" / f"{split}.parquet").read_bytes()
    assert not quickstart.prepare(tmp_path / "a", 40, 20, seed=2)
    with pytest.raises(UserError, match="was made with seed=2, now seed=3"):
        quickstart.prepare(tmp_path / "a", 40, 20, seed=3)


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [(0, 5, "--train 0"), (5, -1, "--val -1"), (5000, 5, "--train 5000"), (5, 5000, "--val 5000")],
)
def test_impossible_sizes_are_refused_with_the_largest_possible(
    train: int, val: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{says}.*at (least|most)"):
        quickstart.prepare(tmp_path / "data", train, val, seed=0)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_named_largest_size_is_possible(split: str) -> None:
    with pytest.raises(UserError) as refusal:
        draw(split, 10**6, 0)
    largest = int(str(refusal.value).rsplit("at most ", 1)[1].split()[0])
    assert len(draw(split, largest, 0)) == largest
    with pytest.raises(UserError):
        draw(split, largest + len(TASKS), 0)


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.prepare_data",
        "quickstart",
        "--out",
        str(tmp_path / "data"),
        "--train",
        "20",
        "--val",
        "10",
    ]
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert first.stdout.startswith(f"{tmp_path / 'data'}: written\n")
    assert second.stdout.startswith(f"{tmp_path / 'data'}: already complete\n")
    for task, text in product(TASKS, (first.stdout, second.stdout)):
        assert f"quickstart/{task.name}" in text
