"""A language model as a second opinion on responses that the rules find wrong (spec section 6.5).

It can only turn wrong into right. It is asked over an OpenAI-compatible HTTP interface: a server of one's own, or
OpenAI. Whatever comes back instead of a reply leaves the verdict of the rules: an answer is read as foreign data, with
a limit on its bytes and on its whole time; every failure is counted by kind in `Judge.failures` (the reference hides
them, quirk Q22), and after some in a row the judge is given up for the rest of the call.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from megatron_rlpr.data.sources import judge_question
from megatron_rlpr.evaluation.judge_prompts import SYSTEM_PROMPT, judge_prompt, says_correct
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.types import UserError

OPENAI_MODELS = ("gpt-4o", "gpt-4.1")
RULES_ONLY = "no_api"
_SERVER_MODEL = "qwen"
_DEFAULT_SERVER = "http://127.0.0.1:8001"
_OPENAI_SERVER = "https://api.openai.com/v1"
_MOST_TOKENS = 12288
_MOST_REPLY_BYTES = 4 * 1024**2
_FAILURES_TO_GIVE_UP = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge is asked, and how patiently.

    base_url: the OpenAI-compatible interface; every_response: ask about responses the rules find right too. timeout_s
    limits one request from connecting to the last byte; retries repeat it after connection errors, time-outs, rate
    limits and server errors, with growing pauses; parallel requests are open at once. sampling: more fields of a
    request. api_key is a secret: it is never printed.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    every_response: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    retries: int = 4
    parallel: int = 16


def judge_settings(environment: Mapping[str, str] = os.environ) -> JudgeSettings | None:
    """The judge that the reference's environment variables ask for; None where the rules alone decide.

    USED_MODEL=no_api: rules only. USED_MODEL=gpt-4o or gpt-4.1: OpenAI, with OPENAI_API_KEY and perhaps
    OPENAI_API_BASE, for every response. Any other USED_MODEL, or a CLIENT_IP: the server at CLIENT_IP (default
    http://127.0.0.1:8001), for responses found wrong.
    Neither of the two: rules only (the reference would ask a server that nobody started). Raises UserError for a
    missing key or a bad URL.
    """
    model = environment.get("USED_MODEL", "")
    server = environment.get("CLIENT_IP", "")
    if model == RULES_ONLY or not (model or server):
        return None
    if model in OPENAI_MODELS:
        key = environment.get("OPENAI_API_KEY", "")
        if not key:
            raise UserError(
                f"USED_MODEL={model} asks OpenAI to judge: set OPENAI_API_KEY, or USED_MODEL=no_api for the rules alone"
            )
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY holds characters that no key has, a line break perhaps; set it anew")
        server = _address("OPENAI_API_BASE", environment.get("OPENAI_API_BASE") or _OPENAI_SERVER, _OPENAI_SERVER)
        return JudgeSettings(model, server, key, True, {"temperature": 0.1})
    server = _address("CLIENT_IP", server or _DEFAULT_SERVER, _DEFAULT_SERVER)
    sampling = {"temperature": 0.0, "top_p": 0.9, "top_k": 50}
    return JudgeSettings(_SERVER_MODEL, server.rstrip("/") + "/v1", "none", False, sampling)


def _address(variable: str, server: str, example: str) -> str:
    """The server's address; raises UserError that names the variable for anything but http(s)://host[:port][/path]."""
    try:
        address = httpx.URL(server)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host or (address.port or 0) > 65535:
        raise UserError(f"{variable}={server!r} is no address of a judge; expected something like {example}")
    return server


class NoReply(Exception):
    """Why there is nothing to read: the message names the kind, `again` says that asking once more may help."""

    def __init__(self, kind: str, again: bool = False) -> None:
        super().__init__(kind)
        self.again = again


class Judge:
    """Asks a judge about many responses; failures counts, over the judge's life, why responses were not judged."""

    def __init__(self, settings: JudgeSettings) -> None:
        """Opens no connection yet."""
        self.settings = settings
        self.failures: Counter[str] = Counter()
        self._failures_in_a_row = 0

    def judge_many(self, tasks: Sequence[GradeTask], results: Sequence[GradeResult]) -> list[GradeResult]:
        """The results of the rules, in order, with those turned right that the judge finds right."""
        if len(tasks) != len(results):
            raise ValueError(f"one result per task: {len(tasks)} tasks, {len(results)} results")
        self._failures_in_a_row = 0
        return asyncio.run(self._all_judged(tasks, results))

    async def _all_judged(self, tasks: Sequence[GradeTask], results: Sequence[GradeResult]) -> list[GradeResult]:
        free = asyncio.Semaphore(self.settings.parallel)
        key = {"Authorization": f"Bearer {self.settings.api_key}"}
        async with httpx.AsyncClient(headers=key, timeout=self.settings.timeout_s) as client:

            async def judged(task: GradeTask, result: GradeResult) -> GradeResult:
                async with free:
                    return await self._judged(client, task, result)

            return await asyncio.gather(*map(judged, tasks, results))

    async def _judged(self, client: httpx.AsyncClient, task: GradeTask, result: GradeResult) -> GradeResult:
        right = result.accuracy == 1.0
        if right and not self.settings.every_response:
            return result
        try:
            reply = await self._reply(client, _question(task))
        except NoReply as error:
            self.failures[str(error)] += 1
            return result
        turned = not right and says_correct(reply, task)
        return replace(result, accuracy=1.0 if turned else result.accuracy, judged_right=turned, judge_reply=reply)

    async def _reply(self, client: httpx.AsyncClient, question: str) -> str:
        """What the judge writes. Raises NoReply when there is nothing, after retries where they may help."""
        if self._failures_in_a_row >= _FAILURES_TO_GIVE_UP:
            raise NoReply("given up")
        attempt = 0
        while True:
            try:
                reply = reply_text(await self._body(client, question))
                self._failures_in_a_row = 0
                return reply
            except NoReply as error:
                if not error.again or attempt == self.settings.retries:
                    self._failures_in_a_row += 1
                    raise
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))
            attempt += 1

    async def _body(self, client: httpx.AsyncClient, question: str) -> bytes:
        """The bytes of one answer with status 200, within the limits of size and time; NoReply for anything else."""
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
        asked = {"model": self.settings.model, "messages": messages, "max_tokens": _MOST_TOKENS}
        url, body = f"{self.settings.base_url.rstrip('/')}/chat/completions", bytearray()
        try:
            async with (
                asyncio.timeout(self.settings.timeout_s),
                client.stream("POST", url, json=asked | dict(self.settings.sampling)) as response,
            ):
                if response.status_code != 200:
                    again = response.status_code in (408, 409, 429) or response.status_code >= 500
                    raise NoReply(f"status {response.status_code}", again)
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _MOST_REPLY_BYTES:
                        raise NoReply(f"a reply of more than {_MOST_REPLY_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException) as error:
            raise NoReply("time limit", again=True) from error
        except (httpx.HTTPError, ValueError) as error:  # no connection, half a reply, no HTTP, not gzip; no host name
            raise NoReply(type(error).__name__, again=True) from error
        return bytes(body)


def reply_text(body: bytes) -> str:
    """The text of the first choice of a chat completion, whoever wrote it. Raises NoReply when it holds none."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise NoReply("a reply that is no JSON") from error
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise NoReply("a reply without a message")
    text = message.get("content")
    if not isinstance(text, str):
        raise NoReply("a reply whose content is no text")
    if not text.strip():
        raise NoReply("empty reply")
    return text


def _question(task: GradeTask) -> str:
    """What the judge is asked about a response. Raises NoReply where there is nothing to ask."""
    if judge_question(task.data_source) is None:
        raise NoReply("no question for this data source")
    try:
        return judge_prompt(task)
    except ValueError as error:
        raise NoReply("no question in the prompt") from error
