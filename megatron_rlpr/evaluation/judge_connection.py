"""Asking a judge over an OpenAI-compatible interface: with the openai client, over a connection that has limits.

The client knows when to ask once more (connection errors, time limits, status 408, 409, 429 and from 500 on), how long
to wait before (Retry-After, seconds or a date, up to two minutes; else half a second, doubled up to eight, less a
random quarter) and when not to (a Retry-After beyond that). What comes back is foreign data, which the client would
read to its end whatever its size and however slowly it drips: `LimitedConnection` gives it no more than so many bytes,
after decompression, in so many seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from openai import APIStatusError, AsyncOpenAI, OpenAIError

from megatron_rlpr.evaluation.judge_prompts import SYSTEM_PROMPT, NoReply, reply_text
from megatron_rlpr.evaluation.judge_settings import NO_KEY, JudgeSettings

_MOST_REPLY_BYTES = 4 * 1024**2
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


class LimitedConnection(httpx2.AsyncClient):
    """Answers are read before anyone sees them: at most one byte more than most_bytes, within timeout_s from
    connecting to the last byte. No redirect is followed; proxies are those of the environment."""

    def __init__(self, timeout_s: float, most_bytes: int, parallel: int) -> None:
        super().__init__(timeout=timeout_s, limits=httpx2.Limits(max_connections=parallel))
        self._timeout_s = timeout_s
        self._most_bytes = most_bytes

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The whole answer. Raises httpx2.ReadTimeout when it takes longer."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await super().send(request, **{**options, "stream": True})
                try:
                    async for piece in answer.aiter_bytes():
                        body += piece
                        if len(body) > self._most_bytes:
                            break
                finally:
                    await answer.aclose()
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no whole answer in {self._timeout_s:g} s", request=request) from error
        headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in _OF_THE_BODY]
        content = bytes(body[: self._most_bytes + 1])
        return httpx2.Response(answer.status_code, headers=headers, content=content, request=request)


class JudgeConnection:
    """Asks one question after the other, or many at once."""

    def __init__(self, settings: JudgeSettings, client: AsyncOpenAI) -> None:
        self._settings = settings
        self._client = client

    async def reply(self, question: str) -> str:
        """What the judge writes. Raises NoReply when there is nothing, after retries where they may help."""
        settings = self._settings
        try:
            answer = await self._client.chat.completions.with_raw_response.create(
                model=settings.model,
                messages=[{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}],
                max_tokens=settings.most_tokens,
                extra_body=dict(settings.sampling),
            )
        except APIStatusError as error:
            raise NoReply(f"status {error.status_code}") from error
        except (OpenAIError, httpx2.HTTPError, ValueError) as error:  # a ValueError: no host has such a name
            cause = error.__cause__ or error
            slow = isinstance(cause, httpx2.TimeoutException)
            raise NoReply("time limit" if slow else type(cause).__name__) from error
        if answer.status_code != 200:
            raise NoReply(f"status {answer.status_code}")
        if len(answer.content) > _MOST_REPLY_BYTES:
            raise NoReply(f"a reply of more than {_MOST_REPLY_BYTES} bytes")
        text = reply_text(answer.content)
        return text if settings.api_key == NO_KEY else text.replace(settings.api_key, "[key]")  # servers may repeat it


@asynccontextmanager
async def judge_connection(settings: JudgeSettings) -> AsyncIterator[JudgeConnection]:
    """A connection that is closed at the end of the block."""
    limited = LimitedConnection(settings.timeout_s, _MOST_REPLY_BYTES, settings.parallel)
    async with AsyncOpenAI(
        api_key=settings.api_key, base_url=settings.base_url, max_retries=settings.retries, http_client=limited
    ) as client:
        yield JudgeConnection(settings, client)
