"""A judge that asks for patience gets it, within bounds: Retry-After, time limits, and the time of a whole
validation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from typing import Any

import pytest
from judge_server import Answer, JudgeServer

from megatron_rlpr.config.schema import EvaluationConfig
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_settings import JudgeSettings, judge_settings
from megatron_rlpr.grading.result import GradeResult, GradeTask

WRONG = GradeResult(0.0, 1.0, "0.25")


def tasks(number: int) -> list[GradeTask]:
    question = "user\nWhat is half of 1?\nassistant\n"
    return [GradeTask("Math-500_Avg2", f"one half ({n})", "0.5", question) for n in range(number)]


@contextmanager
def serving(answer: Answer) -> Iterator[JudgeServer]:
    server = JudgeServer(answer)
    yield server
    server.stop()


def judge(server: JudgeServer, **changes: Any) -> Judge:
    return Judge(JudgeSettings("qwen", server.url + "/v1", "none", **{"timeout_s": 60.0, "retries": 1} | changes))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_a_busy_judge_is_asked_again_when_it_wants_to(status: int, as_date: bool) -> None:
    def answer(request: dict[str, Any], number: int) -> tuple[int, str, dict[str, str]]:
        wait = formatdate(time.time() + 2, usegmt=True) if as_date else "1"  # a date has whole seconds
        return (status, "", {"Retry-After": wait}) if number == 1 else (200, r"\boxed{Y}", {})

    with serving(answer) as server:
        asked = judge(server)
        assert asked.judge_many(tasks(1), [WRONG])[0].accuracy == 1.0
    assert not asked.failures
    assert server.times[1] - server.times[0] >= 0.95, "its own pause would have been half a second at most"


def test_nobody_waits_an_hour() -> None:
    with serving(lambda request, _: (429, "", {"Retry-After": "3600"})) as server:
        asked = judge(server)
        begun = time.monotonic()
        assert asked.judge_many(tasks(1), [WRONG]) == [WRONG]
    assert time.monotonic() - begun < 20
    assert (asked.failures, len(server.requests)) == ({"status 429": 1}, 1)


def test_pauses_grow() -> None:
    with serving(lambda request, _: (500, "")) as server:
        asked = judge(server, retries=2)
        assert asked.judge_many(tasks(1), [WRONG]) == [WRONG]
    first, second = server.times[1] - server.times[0], server.times[2] - server.times[1]
    assert first >= 0.37, "half a second, less at most a quarter of it"
    assert second >= 0.74
    assert (asked.failures, len(server.requests)) == ({"status 500": 1}, 3)


def test_all_sets_of_a_validation_share_its_time_and_the_next_one_has_it_again() -> None:
    ended = threading.Event()

    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        ended.wait()
        return 200, r"\boxed{Y}"

    with serving(slow) as server, closing(_Setting(ended)):
        asked = judge(server, time_limit_s=4.0, parallel=2)
        begun = time.monotonic()
        for _ in range(3):
            assert asked.judge_many(tasks(10), [WRONG] * 10) == [WRONG] * 10
        assert time.monotonic() - begun < 40
        assert asked.failures == {"no time left": 30}
        assert asked.asked == 2, "the second set is not asked about any more"
        ended.set()
        asked.begin_validation()
        assert asked.judge_many(tasks(1), [WRONG])[0].accuracy == 1.0


class _Setting:
    """Sets an event in the end, whatever happens."""

    def __init__(self, event: threading.Event) -> None:
        self.close = event.set


def test_the_configuration_says_how_patient_a_run_is() -> None:
    config = EvaluationConfig(judge_parallel=3, judge_timeout_s=4, judge_time_limit_s=5, judge_max_tokens=6)
    asked = judge_settings({"CLIENT_IP": "http://judge:1"}, config)
    assert asked is not None
    assert (asked.parallel, asked.timeout_s, asked.time_limit_s, asked.most_tokens) == (3, 4.0, 5.0, 6)


def test_a_request_holds_what_the_reference_asks_with() -> None:
    with serving(lambda request, _: (200, r"\boxed{Y}")) as server:
        settings = judge_settings({"CLIENT_IP": server.url})
        assert settings is not None
        Judge(settings).judge_many(tasks(1), [WRONG])
    wanted = {"model": "qwen", "max_tokens": 12288, "temperature": 0.0, "top_p": 0.9, "top_k": 50}
    request = server.requests[0]
    assert {name: request[name] for name in wanted} == wanted
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert set(request) == {*wanted, "messages"}
