"""Public data sets become files that a run loads and grades; what cannot be used is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.data.parquet import read_rows
from megatron_rlpr.data.prompt_templates import R1_SYSTEM
from megatron_rlpr.grading.multiple_choice import LETTERS, option_text
from megatron_rlpr.grading.tasks import prompt_text
from megatron_rlpr.types import UserError
from tools.prepare_data.__main__ import main
from tools.prepare_data.benchmarks import answer_text, hugging_face, theoremqa

GSM8K = [
    {"question": "How much in all?", "answer": "2 * 35,000 = <<2*35000=70000>>70,000\n#### 70,000"},
    {"question": "How many are left?", "answer": "#### 3"},
]
THEOREMS: list[dict[str, Any]] = [
    {"Question": "Is it?", "Answer": False, "Answer_type": "bool", "field": "Math"},
    {"Question": "Which path?", "Answer": [0, 5], "Answer_type": "list of integer", "field": "EECS"},
    {"Question": "What is shown?", "Answer": 1.0, "Picture": {"bytes": "..."}},
    {"Question": "How large?", "Answer": 0.25, "field": "Physics"},
    {"Question": "Which?", "Answer": "(c)", "field": "Math"},
]


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_each_benchmark_has_the_releases_name_prompt_and_answers(tmp_path: Path) -> None:
    choice = {"question": "Which?", "options": ["a\nb", "c"], "answer": "B", "category": "law"}
    files = {
        "gsm8k": (lines(tmp_path / "g.jsonl", GSM8K), "gsm8k_Avg2", "openai/gsm8k", ["70000", "3"]),
        "theoremqa": (
            lines(tmp_path / "t.jsonl", THEOREMS),
            *("TheoremQA_Avg2", "TheoremQA_Avg2", ["False", "[0, 5]", "0.25", "(c)"]),
        ),
        "mmlu-pro": (lines(tmp_path / "m.jsonl", [choice]), "MMLUPro-1000_Avg2", "MMLUPro-1000_Avg2", ["B"]),
    }
    for command, (file, name, source, answers) in files.items():
        assert main([command, "--input", str(file), "--out", str(tmp_path), "--strict"]) == 0
        made = read_rows(tmp_path / "test" / f"{name}.parquet")
        assert [row.reference_answer for row in made] == answers
        assert {row.data_source for row in made} == {source}
        assert all(row.messages[0] == {"role": "system", "content": R1_SYSTEM} for row in made)
        assert [row.extra["extra_info"]["index"] for row in made] == list(range(len(made)))
    assert made[0].messages[1]["content"] == "Question:\nWhich?\nOptions:\nA. a b\nB. c"
    assert made[0].extra["ability"] == "law"
    assert made[0].extra["extra_info"]["source"] == "m.jsonl, line 1"


def test_bad_rows_are_listed_by_line_and_strict_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [
        "{",
        "[1]",
        {"question": "?"},
        {"question": "?", "answer": "no mark"},
        {"question": "?", "answer": "#### x"},
    ]
    file = lines(tmp_path / "g.jsonl", [GSM8K[0], *faults, "", GSM8K[1]])
    arguments = ["gsm8k", "--input", str(file), "--out", str(tmp_path)]
    assert main([*arguments, "--strict"]) == 2
    assert "--strict refuses its 5 bad rows" in capsys.readouterr().err
    assert not list((tmp_path / "test").glob("*.parquet"))
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "2 rows written, 0 left out, 5 bad" in printed.out
    made = read_rows(tmp_path / "test" / "gsm8k_Avg2.parquet")
    assert [row.extra["extra_info"]["index"] for row in made] == [0, 1], "numbers without holes, none twice"
    listed = (tmp_path / "test" / "gsm8k_Avg2.bad_rows.txt").read_text().splitlines()
    for number, said in zip(
        range(2, 7), ("no JSON", "JSON object", "'answer' is missing", "####", "right"), strict=True
    ):
        assert [line for line in listed if line.startswith(f"{file}, line {number}: ") and said in line], listed
        assert f"line {number}: " in printed.err


def test_the_same_command_makes_nothing_twice_and_overwrites_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path / "t.jsonl", [{"Question": f"{n}?", "Answer": n} for n in range(30)])
    arguments = ["theoremqa", "--input", str(file), "--out", str(tmp_path)]
    target = tmp_path / "test" / "TheoremQA_Avg2.parquet"
    assert main([*arguments, "--rows", "7"]) == 0
    first = target.read_bytes()
    drawn = [int(row.reference_answer) for row in read_rows(target)]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 7
    assert main([*arguments, "--rows", "7"]) == 0
    assert "already complete, 7 rows" in capsys.readouterr().out
    assert main([*arguments, "--rows", "8"]) == 2
    assert "was made from other files or arguments" in capsys.readouterr().err
    assert target.read_bytes() == first


def test_the_releases_own_files_keep_their_columns(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "?"}]
    records = [
        {
            "prompt": prompt,
            "data_source": source,
            "reward_model": {"ground_truth": answer, "style": "rule"},
            "uuid": uuid,
        }
        for source, answer, uuid in (("Math-500_Avg2", "4", "a"), ("unheard of", "4", "b"), ("Math-500_Avg2", " ", "c"))
    ]
    (tmp_path / "release").mkdir()
    pd.DataFrame(records).to_parquet(tmp_path / "release" / "Math-500_Avg2.parquet")
    assert main(["rlpr", "--input", str(tmp_path / "release"), "--out", str(tmp_path)]) == 0
    (kept,) = read_rows(tmp_path / "test" / "Math-500_Avg2.parquet")
    assert (kept.reference_answer, kept.extra["uuid"]) == ("4", "a")
    listed = (tmp_path / "test" / "Math-500_Avg2.bad_rows.txt").read_text()
    assert "row 1: data_source 'unheard of' has no grader" in listed
    assert "row 2: reward_model.ground_truth is empty" in listed


def test_any_file_with_a_question_and_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = {"label": ["A", "B"], "text": ["ice", "fire"]}
    pd.DataFrame([{"q": "Hot?", "key": "B", "choices": choices}]).to_parquet(tmp_path / "arc.parquet")
    fields = ["--question-field", "q", "--answer-field", "key"]
    arguments = ["hf", "--input", str(tmp_path / "arc.parquet"), "--out", str(tmp_path), *fields]
    assert main([*arguments, "--name", "arc-SuperGPQA_Avg3", "--options-field", "choices"]) == 0
    (row,) = read_rows(tmp_path / "test" / "arc-SuperGPQA_Avg3.parquet")
    assert row.reference_answer == "B"
    assert option_text(prompt_text(row.messages), "B") == "fire"
    assert main([*arguments, "--name", "arc-SuperGPQA_Avg4"]) == 2
    assert "give --options-field" in capsys.readouterr().err
    assert main([*arguments, "--name", "arc"]) == 2
    assert "has no grader" in capsys.readouterr().err


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.text("abc \n", min_size=1).filter(str.strip), min_size=2, max_size=16, unique_by=lambda o: "".join(o.split())
    ),
    st.data(),
)
def test_letter_number_and_text_of_an_option_mean_the_same(options: list[str], data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(options) - 1))
    read = hugging_face("q", "a", "o")
    for answer in (LETTERS[right], right, options[right]):
        question = read({"q": "Which?", "a": answer, "o": options})
        assert question is not None
        assert question.answer == LETTERS[right]
        assert f"\n{LETTERS[right]}. {' '.join(options[right].split())}" in question.text


@pytest.mark.parametrize("answer", [None, "", " ", float("nan"), {"a": 1}])
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(UserError, match="answer"):
        answer_text(answer)
    with pytest.raises(UserError, match=r"[Aa]nswer"):
        theoremqa({"Question": "?", "Answer": answer})
