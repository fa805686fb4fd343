"""A language model as a second opinion on responses that the rules find wrong (spec section 6.5).

It can only turn wrong into right. It is asked over an OpenAI-compatible HTTP interface: a server of one's own, or
OpenAI. A judge that does not answer leaves the verdict of the rules; every such failure is counted by kind in
`Judge.failures` (the reference hides them, quirk Q22), and after some in a row the judge is given up for the rest of
the call.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from megatron_rlpr.data.sources import judge_question
from megatron_rlpr.evaluation.judge_prompts import SYSTEM_PROMPT, judge_prompt, says_correct
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.types import UserError

OPENAI_MODELS = ("gpt-4o", "gpt-4.1")
RULES_ONLY = "no_api"
_SERVER_MODEL = "qwen"
_DEFAULT_SERVER = "http://127.0.0.1:8001"
_MOST_TOKENS = 12288
_FAILURES_TO_GIVE_UP = 8


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge is asked, and how patiently.

    base_url: the OpenAI-compatible interface, None for OpenAI's own; every_response: ask about responses the rules find
    right too. timeout_s limits one request; retries repeat it after connection errors, time-outs, rate limits and
    server errors, with growing pauses; parallel requests are open at once. api_key is a secret: it is never printed.
    """

    model: str
    base_url: str | None
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
        return JudgeSettings(model, environment.get("OPENAI_API_BASE") or None, key, True, {"temperature": 0.1})
    server = server or _DEFAULT_SERVER
    address = urlsplit(server)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"CLIENT_IP={server!r} is no address of a judge; expected something like {_DEFAULT_SERVER}")
    sampling = {"temperature": 0.0, "top_p": 0.9, "extra_body": {"top_k": 50}}
    return JudgeSettings(_SERVER_MODEL, server.rstrip("/") + "/v1", "none", False, sampling)


class Judge:
    """Asks a judge about many responses; failures counts, over the judge's life, why responses were not judged."""

    def __init__(self, settings: JudgeSettings) -> None:
        """Opens no connection yet."""
        from openai import OpenAI  # only where a judge is wanted

        self.settings = settings
        self.failures: Counter[str] = Counter()
        patience: dict[str, Any] = {"timeout": settings.timeout_s, "max_retries": settings.retries}
        self._client = OpenAI(api_key=settings.api_key, base_url=settings.base_url, **patience)
        self._lock = threading.Lock()
        self._failures_in_a_row = 0

    def judge_many(self, tasks: Sequence[GradeTask], results: Sequence[GradeResult]) -> list[GradeResult]:
        """The results of the rules, in order, with those turned right that the judge finds right."""
        if len(tasks) != len(results):
            raise ValueError(f"one result per task: {len(tasks)} tasks, {len(results)} results")
        self._failures_in_a_row = 0
        with ThreadPoolExecutor(self.settings.parallel, thread_name_prefix="judge") as threads:
            return list(threads.map(self._judged, tasks, results))

    def _judged(self, task: GradeTask, result: GradeResult) -> GradeResult:
        right = result.accuracy == 1.0
        if right and not self.settings.every_response:
            return result
        if judge_question(task.data_source) is None:
            self._count("no question for this data source")
            return result
        reply = self._ask(task)
        if reply is None:
            return result
        turned = not right and says_correct(reply, task)
        return replace(result, accuracy=1.0 if turned else result.accuracy, judged_right=turned, judge_reply=reply)

    def _ask(self, task: GradeTask) -> str | None:
        """The judge's reply; None, and a count of the reason, when there is none."""
        if self._failures_in_a_row >= _FAILURES_TO_GIVE_UP:
            self._count("given up")
            return None
        from openai import OpenAIError

        try:
            asked = {"role": "user", "content": judge_prompt(task)}
            messages: list[Any] = [{"role": "system", "content": SYSTEM_PROMPT}, asked]
            reply = self._client.chat.completions.create(
                model=self.settings.model, messages=messages, max_tokens=_MOST_TOKENS, **self.settings.sampling
            )
            text = reply.choices[0].message.content if reply.choices else None
        except (OpenAIError, ValueError) as error:  # no reply, none to understand, or no question in the prompt
            self._count(type(error).__name__, in_a_row=isinstance(error, OpenAIError))
            return None
        if not text:
            self._count("empty reply", in_a_row=True)
            return None
        with self._lock:
            self._failures_in_a_row = 0
        return text

    def _count(self, reason: str, in_a_row: bool = False) -> None:
        with self._lock:
            self.failures[reason] += 1
            self._failures_in_a_row += in_a_row
