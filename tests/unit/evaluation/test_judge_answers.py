"""No question is asked twice: not within a validation, not by the next one, not by another run, not after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import JudgeServer

from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_answers import JudgeAnswers
from megatron_rlpr.evaluation.judge_settings import JudgeSettings
from megatron_rlpr.grading.result import GradeResult, GradeTask

WRONG = GradeResult(0.0, 1.0, "0.25")
ASKED = {"model": "qwen", "temperature": 0.0}


def tasks(number: int) -> list[GradeTask]:
    question = "user\nWhat is half of 1?\nassistant\n"
    return [GradeTask("Math-500_Avg2", f"one half ({n})", "0.5", question) for n in range(number)]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    serving = JudgeServer(lambda request, number: (200, f"{number}: \\boxed{{Y}}"))
    yield serving
    serving.stop()


def judge(url: str, folder: Path, **changes: Any) -> Judge:
    asked = JudgeSettings("qwen", url + "/v1", "none", **{"retries": 0, "parallel": 1} | changes)
    return Judge(asked, JudgeAnswers(folder, asked.asked))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def test_a_question_is_asked_once_within_a_call_and_once_for_all_runs(server: JudgeServer, tmp_path: Path) -> None:
    first, second = judge(server.url, tmp_path), judge(server.url, tmp_path)
    answered = first.judge_many(tasks(3) * 2, [WRONG] * 6)
    assert (len(server.requests), first.asked, first.remembered) == (3, 3, 0)
    assert answered[:3] == answered[3:]
    assert second.judge_many(tasks(3), [WRONG] * 3) == answered[:3]
    assert (len(server.requests), second.asked, second.remembered) == (3, 0, 3)


def test_the_same_failure_counts_for_every_response_and_is_asked_about_again(tmp_path: Path) -> None:
    server = JudgeServer(lambda request, number: (400, "") if number == 1 else (200, r"\boxed{Y}"))
    asked = judge(server.url, tmp_path)
    assert asked.judge_many(tasks(1) * 2, [WRONG] * 2) == [WRONG] * 2
    assert asked.failures == {"status 400": 2}
    assert files(tmp_path) == []
    assert asked.judge_many(tasks(1), [WRONG])[0].accuracy == 1.0
    server.stop()


def test_another_model_or_other_settings_are_asked_anew(server: JudgeServer, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"name": "Qwen2.5-7B"}, {"sampling": {"top_p": 0.5}}, {"most_tokens": 9}]
    for number, change in enumerate(changes, start=1):
        judge(server.url, tmp_path, **change).judge_many(tasks(1), [WRONG])
        assert len(server.requests) == number
    judge(server.url, tmp_path, parallel=5, timeout_s=7.0).judge_many(tasks(1), [WRONG])
    assert len(server.requests) == len(changes), "patience changes no answer"


DAMAGES = {
    "empty": b"",
    "half": None,
    "no JSON": b"\xff\x00garbage",
    "another kind": b"[1, 2]",
    "nested without end": b"[" * 100_000,
    "a reply that is no text": b'{"asked": {}, "question": "x", "reply": {"a": 1}, "sha256": 5}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_answer_is_asked_for_again_and_mended(server: JudgeServer, tmp_path: Path, damage: str) -> None:
    judge(server.url, tmp_path).judge_many(tasks(1), [WRONG])
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if DAMAGES[damage] is None else DAMAGES[damage] or b"")
    for remembered in (0, 1):
        asked = judge(server.url, tmp_path)
        assert asked.judge_many(tasks(1), [WRONG])[0].accuracy == 1.0
        assert asked.remembered == remembered
    assert len(server.requests) == 2


def test_a_question_that_another_file_answers_is_not_answered_by_it(server: JudgeServer, tmp_path: Path) -> None:
    judge(server.url, tmp_path).judge_many(tasks(2), [WRONG] * 2)
    first, second = files(tmp_path)
    first.write_bytes(second.read_bytes())
    asked = judge(server.url, tmp_path)
    asked.judge_many(tasks(2), [WRONG] * 2)
    assert (asked.asked, asked.remembered) == (1, 1)


@settings(max_examples=25)
@given(question=st.text(alphabet=st.characters()), reply=st.text(min_size=1), place=st.floats(0, 1), byte=st.binary())
def test_what_is_found_is_what_was_kept_whatever_happens_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, question: str, reply: str, place: float, byte: bytes
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    answers = JudgeAnswers(folder, ASKED)
    assert answers.find(question) is None
    answers.keep(question, reply)
    assert answers.find(question) == reply
    assert JudgeAnswers(folder, {**ASKED, "temperature": 1.0}).find(question) is None
    (file,) = files(folder)
    whole = file.read_bytes()
    cut = int(place * len(whole))
    file.write_bytes(whole[:cut] + byte + whole[cut + len(byte) :])
    assert answers.find(question) in (None, reply)


JUDGING = """
import json, sys
from pathlib import Path
from test_judge_answers import WRONG, judge, tasks
judge(sys.argv[1], Path(sys.argv[2]), timeout_s=300.0).judge_many(tasks(5), [WRONG] * 5)
"""


def test_a_judging_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    ended = threading.Event()

    def answer(request: dict[str, Any], number: int) -> tuple[int, str]:
        if number == 4:
            ended.wait()
        return 200, r"\boxed{Y}"

    server = JudgeServer(answer)
    command = [sys.executable, "-c", JUDGING, server.url, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parent) as killed:
        while len(server.requests) < 4 and killed.poll() is None:
            time.sleep(0.05)
        killed.kill()
    ended.set()
    assert len(files(tmp_path)) == 3
    assert all(json.loads(file.read_text())["reply"] == r"\boxed{Y}" for file in files(tmp_path))
    asked = judge(server.url, tmp_path)
    assert [result.accuracy for result in asked.judge_many(tasks(5), [WRONG] * 5)] == [1.0] * 5
    server.stop()
    assert (asked.remembered, asked.asked) == (3, 2)
