"""What the pool was asked for: requests that wait for an engine, and tickets that collect the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

from megatron_rlpr.rollout.ray.actor import Request
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.types import Response


class Ticket:
    """A batch of requests that the pool is working on."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.responses: dict[str, Response] = {}

    @property
    def done(self) -> bool:
        return len(self.responses) == len(self.keys)


class RequestQueue:
    """Requests in the order they were asked for, given out by whole prompts."""

    def __init__(self) -> None:
        self._waiting: deque[list[Request]] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._keys = map(str, count())

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, groups: Sequence[Sequence[GenerationRequest]], sampling: SamplingSettings) -> Ticket:
        """Queue the requests of every prompt, behind those that are there."""
        queued = [[Request(next(self._keys), request, sampling) for request in group] for group in groups]
        ticket = Ticket([one.key for group in queued for one in group])
        self._tickets.update(dict.fromkeys(ticket.keys, ticket))
        self._waiting.extend(queued)
        return ticket

    def pop(self) -> list[Request]:
        """The requests that are next."""
        return self._waiting.popleft()

    def put_back(self, requests: list[Request]) -> None:
        """To the front; their seeds go with them, so whoever repeats them samples the same."""
        if requests:
            self._waiting.appendleft(requests)

    def answer(self, key: str, response: Response) -> None:
        """Hand a response to its ticket."""
        self._tickets.pop(key).responses[key] = response
