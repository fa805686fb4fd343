"""The judge is asked over HTTP, turns wrong into right only, and its failures are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from judge_server import Answer, JudgeServer

from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_prompts import judge_prompt, recover_question
from megatron_rlpr.evaluation.judge_settings import JudgeSettings, judge_settings
from megatron_rlpr.grading.multiple_choice import option_text
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.grading.tasks import prompt_text
from megatron_rlpr.types import UserError

PROMPT = "system\nBe brief.\nuser\nWhat is {half} of 1?\nassistant\n"
WRONG = GradeResult(0.0, 1.0, "0.5")
RIGHT = GradeResult(1.0, 1.0, "1/2")


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], JudgeServer]]:
    servers: list[JudgeServer] = []

    def start(answer: Answer) -> JudgeServer:
        servers.append(JudgeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def task(source: str = "Math-500_Avg2", reference: str = "0.5", response: str = "one half") -> GradeTask:
    return GradeTask(source, response, reference, PROMPT)


def quick(url: str, **changes: Any) -> Judge:
    return Judge(
        JudgeSettings("qwen", url + "/v1", "none", **{"timeout_s": 60.0, "retries": 1, "parallel": 2} | changes)
    )


def test_a_wrong_answer_is_turned_right_and_a_right_one_is_not_asked_about(
    serve: Callable[[Answer], JudgeServer],
) -> None:
    server = serve(lambda request, _: (200, "Same value: \\boxed{Y}"))
    judge = quick(server.url)
    results = judge.judge_many([task(), task()], [WRONG, RIGHT])
    assert [r.accuracy for r in results] == [1.0, 1.0]
    assert [r.judged_right for r in results] == [True, False]
    assert len(server.requests) == 1
    question = server.requests[0]["messages"][1]["content"]
    assert "What is {half} of 1?" in question
    assert "one half" in question


def test_a_judge_cannot_turn_right_into_wrong(serve: Callable[[Answer], JudgeServer]) -> None:
    server = serve(lambda request, _: (200, "\\boxed{N}"))
    judge = quick(server.url, every_response=True)
    assert [r.accuracy for r in judge.judge_many([task(), task(response="half")], [RIGHT, WRONG])] == [1.0, 0.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "accuracy"), [("I see \\boxed{a}, no: \\boxed{C}", 1.0), ("\\boxed{B}", 0.0), ("Unclear", 0.0)]
)
def test_of_a_choice_the_judge_reports_the_letter(
    serve: Callable[[Answer], JudgeServer], reply: str, accuracy: float
) -> None:
    judge = quick(serve(lambda request, _: (200, reply)).url)
    assert judge.judge_many([task("gpqa_diamond_Avg4", "C")], [WRONG])[0].accuracy == accuracy


def test_a_server_error_is_retried(serve: Callable[[Answer], JudgeServer]) -> None:
    judge = quick(serve(lambda request, number: (500, "") if number == 1 else (200, "\\boxed{Y}")).url)
    assert judge.judge_many([task()], [WRONG])[0].accuracy == 1.0
    assert not judge.failures


def test_failures_are_counted_by_kind_and_leave_the_rules_verdict(serve: Callable[[Answer], JudgeServer]) -> None:
    given_up = threading.Event()

    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        given_up.wait()
        return 200, "\\boxed{Y}"

    judge = quick(serve(slow).url, timeout_s=0.2, retries=0)
    assert judge.judge_many([task()], [WRONG]) == [WRONG]
    given_up.set()
    assert judge.failures == {"time limit": 1}
    judge = quick(serve(lambda request, _: (200, "")).url)
    assert (
        judge.judge_many([task(), task("unknown"), GradeTask("Math-500", "x", "1", "no turn")], [WRONG] * 3)
        == [WRONG] * 3
    )
    assert judge.failures == {"empty reply": 1, "no question for this data source": 1, "no question in the prompt": 1}


def test_a_dead_judge_is_given_up_soon(serve: Callable[[Answer], JudgeServer]) -> None:
    judge = quick("http://127.0.0.1:9", retries=0, parallel=1)
    tasks = [task(response=f"one half, try {number}") for number in range(40)]
    assert judge.judge_many(tasks, [WRONG] * 40) == [WRONG] * 40
    assert judge.failures == {"ConnectError": 8, "given up": 32}


def test_the_environment_variables_of_the_reference_choose_the_judge() -> None:
    assert judge_settings({}) is None
    assert judge_settings({"USED_MODEL": "no_api", "CLIENT_IP": "http://x:1"}) is None
    server = judge_settings({"USED_MODEL": "Qwen2.5-72B-Instruct"})
    assert server is not None
    assert (server.base_url, server.every_response) == ("http://127.0.0.1:8001/v1", False)
    openai = judge_settings({"USED_MODEL": "gpt-4.1", "OPENAI_API_KEY": "sk-secret"})
    assert openai is not None
    assert openai.every_response
    assert "secret" not in repr(openai)


def test_a_missing_key_and_a_bad_address_are_refused() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        judge_settings({"USED_MODEL": "gpt-4o"})
    with pytest.raises(UserError, match=r"CLIENT_IP is no address.*http://127"):
        judge_settings({"CLIENT_IP": "127.0.0.1:8001"})


def test_the_judge_does_not_see_turns_a_base_model_invents() -> None:
    assert "invented" not in judge_prompt(task(response="one half user\ninvented"))


def test_a_prompt_made_from_messages_gives_its_question_back() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question:\nWhich?\nOptions:\nA. apple\nB. pear"},
    ]
    assert recover_question(prompt_text(messages)) == "Which?\nOptions:\nA. apple\nB. pear\nassistant"
    assert option_text(prompt_text(messages), "B") == "pear"
