"""Whatever a foreign server sends in place of a judge's reply: counted by its cause, and the rules' verdict stands."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from judge_server import completion, http, raw_server

from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_prompts import NoReply, reply_text
from megatron_rlpr.evaluation.judge_settings import JudgeSettings, judge_settings
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.types import UserError

TASK = GradeTask("Math-500_Avg2", "one half", "0.5", "user\nWhat is half of 1?\nassistant\n")
WRONG = GradeResult(0.0, 1.0, "0.25")


def drip(head: bytes = b"") -> Iterator[bytes]:
    """A byte every tenth of a second: no single wait is long."""
    yield head
    while True:
        time.sleep(0.1)
        yield b"x"


def endless() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    while True:
        yield b"[" * 2**20


GOOD = completion({"content": r"\boxed{Y}"})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
NO_JSON, NO_MESSAGE, NO_TEXT = (
    "a reply that is no JSON",
    "a reply without a message",
    "a reply whose content is no text",
)
BODIES = {
    "html": (b"<html>It works!</html>", NO_JSON),
    "empty": (b"", NO_JSON),
    "invalid UTF-8": (b'{"choices": "\xff\xfe"}', NO_JSON),
    "nested without end": (b"[" * 100_000, NO_JSON),
    "a number of many digits": (b"9" * 10_000, NO_JSON),
    "half a document": (GOOD[:-3], NO_JSON),
    "a string": (b'"\\\\boxed{Y}"', NO_MESSAGE),
    "a list": (b"[" + GOOD + b"]", NO_MESSAGE),
    "null": (b"null", NO_MESSAGE),
    "no choices": (b"{}", NO_MESSAGE),
    "choices null": (b'{"choices": null}', NO_MESSAGE),
    "choices empty": (b'{"choices": []}', NO_MESSAGE),
    "choices a dict": (b'{"choices": {"0": 1}}', NO_MESSAGE),
    "a choice that is a number": (b'{"choices": [1]}', NO_MESSAGE),
    "a choice without message": (b'{"choices": [{"index": 0, "text": "Y"}]}', NO_MESSAGE),
    "message null": (completion(None), NO_MESSAGE),
    "message a list": (completion([{"content": "Y"}]), NO_MESSAGE),
    "no content": (completion({"role": "assistant"}), NO_TEXT),
    "content null": (completion({"content": None}), NO_TEXT),
    "content a number": (completion({"content": 1.5}), NO_TEXT),
    "content in parts": (completion({"content": [{"type": "text", "text": r"\boxed{Y}"}]}), NO_TEXT),
    "content blank": (completion({"content": " \n"}), "empty reply"),
}
ANSWERS: dict[str, tuple[Callable[[], Iterable[bytes]], str]] = {
    **{name: (lambda body=body: [http(body)], cause) for name, (body, cause) in BODIES.items()},
    "an error with a page": (lambda: [http(b"<html>", "404 Not Found", "text/html")], "status 404"),
    "no content at all": (lambda: [b"HTTP/1.1 204 No Content\r\n\r\n"], "status 204"),
    "a redirect to itself": (lambda: [http(b"", "307 Temporary Redirect", "text/html", "Location: /")], "status 307"),
    "too many requests": (lambda: [http(b"", "429 Too Many Requests")], "status 429"),
    "gzip that is none": (lambda: [http(b"garbage", "200 OK", "a/b", "Content-Encoding: gzip")], "DecodingError"),
    "a small bomb": (
        lambda: [http(gzip.compress(b" " * 20_000_000), "200 OK", "a/b", "Content-Encoding: gzip")],
        "a reply of more than 4194304 bytes",
    ),
    "a body without end": (endless, "a reply of more than 4194304 bytes"),
    "half a reply": (lambda: [HEAD + b"{"], "RemoteProtocolError"),
    "nothing": (list, "RemoteProtocolError"),
    "no HTTP": (lambda: [b"220 mail.example ESMTP\r\n"], "RemoteProtocolError"),
    "a body in drops": (lambda: drip(HEAD), "time limit"),
    "a head in drops": (lambda: drip(b"HTTP/1.1 200 OK\r\nX: "), "time limit"),
}


def ask(url: str, tasks: int = 1, **changes: Any) -> tuple[list[GradeResult], dict[str, int]]:
    judge = Judge(JudgeSettings("qwen", url + "/v1", "none", **{"timeout_s": 60.0, "retries": 0} | changes))
    different = [replace(TASK, response_text=f"one half ({number})") for number in range(tasks)]
    return judge.judge_many(different, [WRONG] * tasks), judge.failures


@pytest.mark.parametrize("name", ANSWERS)
def test_anything_but_a_reply_is_counted_by_its_cause_and_the_rules_verdict_stands(name: str) -> None:
    pieces, cause = ANSWERS[name]
    begun = time.monotonic()
    with raw_server(pieces) as url:
        results, failures = ask(url, timeout_s=0.5 if cause == "time limit" else 60.0)
    assert results == [WRONG]
    assert failures == {cause: 1}
    assert time.monotonic() - begun < 60


def test_a_whole_reply_of_an_unusual_kind_is_read() -> None:
    good = gzip.compress(GOOD)
    with raw_server(lambda: [http(good, "200 OK", "text/plain", "Content-Encoding: gzip")]) as url:
        results, failures = ask(url)
    assert [result.accuracy for result in results] == [1.0]
    assert not failures


def test_what_may_pass_is_asked_again_and_what_may_not_is_not() -> None:
    for status, requests in (("503 Service Unavailable", 2), ("400 Bad Request", 1)):
        sent: list[bytes] = []

        def pieces(status: str = status, sent: list[bytes] = sent) -> list[bytes]:
            sent.append(http(b"", status))
            return sent[-1:]

        with raw_server(pieces) as url:
            assert ask(url, retries=1)[0] == [WRONG]
        assert len(sent) == requests


def test_a_server_that_never_says_anything_sensible_is_given_up() -> None:
    with raw_server(lambda: [http(b"<html>")]) as url:
        _, failures = ask(url, tasks=40, parallel=1)
    assert failures == {NO_JSON: 8, "given up": 32}


@pytest.mark.parametrize("body", [pair[0] for pair in BODIES.values()], ids=list(BODIES))
def test_a_body_is_read_by_its_shape(body: bytes) -> None:
    with pytest.raises(NoReply):
        reply_text(body)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8001", "http://", "http://x:y", "http://h:70000", "ftp://x", "http://\0", "http://h p"]
)
@pytest.mark.parametrize("variable", ["CLIENT_IP", "OPENAI_API_BASE"])
def test_an_address_that_cannot_be_asked_is_refused(variable: str, address: str) -> None:
    model = {"USED_MODEL": "gpt-4.1", "OPENAI_API_KEY": "key"} if variable == "OPENAI_API_BASE" else {}
    with pytest.raises(UserError, match=f"{variable} is no address of a judge"):
        judge_settings({variable: address, **model})


def test_a_key_with_a_line_break_is_refused_without_being_shown() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        judge_settings({"USED_MODEL": "gpt-4.1", "OPENAI_API_KEY": "secret\n"})
    assert "secret" not in str(refused.value)
