"""A stream of named tensors as buckets of bytes, and back.

A bucket is a buffer of fixed capacity: pieces of tensors one after the other, then a JSON list that says what they are.
A tensor that does not fit into what is left goes on in the next bucket, so every bucket but the last is full and none
needs to be larger, whatever the largest tensor. Bits are copied, never converted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from megatron_rlpr.system.dtypes import dtype_name
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightTransportError


class Filled(NamedTuple):
    """How a buffer was filled: bytes of pieces, then of their description. last: 1 where the stream ends, else 0."""

    payload: int
    description: int
    last: int


class StreamCutter:
    """Fills buffers with a stream, in order. Takes a tensor from it only when there is a buffer to put it in."""

    def __init__(self, tensors: Iterable[NamedTensor]) -> None:
        self._source = iter(tensors)
        self._current: _Cursor | None = None

    def fill(self, buffer: torch.Tensor) -> Filled:
        """Fill a uint8 buffer [capacity] on any device. ValueError for one that is too small to hold anything."""
        payload, described = 0, 2
        entries: list[str] = []
        while (cursor := self._next()) is not None:
            room = len(buffer) - payload - described - len(cursor.entry(cursor.left)) - 1
            if room < min(1, cursor.left):
                break
            take = min(room, cursor.left)
            entries.append(cursor.entry(take))
            buffer[payload : payload + take].copy_(cursor.advance(take))
            payload, described = payload + take, described + len(entries[-1]) + 1
        if cursor is not None and not entries:
            raise ValueError(f"a bucket of {len(buffer)} bytes does not hold the description of {cursor.name}")
        description = f"[{','.join(entries)}]".encode("ascii")
        buffer[payload : payload + len(description)].copy_(torch.frombuffer(bytearray(description), dtype=torch.uint8))
        return Filled(payload, len(description), int(cursor is None))

    def _next(self) -> _Cursor | None:
        """The tensor that is being cut, or the next one."""
        if self._current is None or self._current.done:
            self._current = None  # frees it before the next one is made
            for name, tensor in self._source:
                self._current = _Cursor(name, tensor)
                break
        return self._current


class _Cursor:
    """A tensor and how much of it has been sent."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.done = False
        self._kind = json.dumps([name, dtype_name(tensor.dtype), list(tensor.shape)])[:-1]
        self._raw = tensor.detach().contiguous().flatten().view(torch.uint8)
        self._sent = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._sent

    def entry(self, nbytes: int) -> str:
        """How the next nbytes bytes are described."""
        return f"{self._kind},{self._sent},{nbytes}]"

    def advance(self, nbytes: int) -> torch.Tensor:
        """The next nbytes bytes."""
        piece = self._raw[self._sent : self._sent + nbytes]
        self._sent += nbytes
        self.done = self._sent == len(self._raw)
        return piece


class StreamAssembler:
    """Makes tensors of the buckets of one stream, which come in order. Its tensors lie in memory of their own."""

    def __init__(self) -> None:
        self._name = ""
        self._tensor: torch.Tensor | None = None
        self._got = 0

    def tensors(self, buffer: torch.Tensor, filled: Filled) -> Iterator[NamedTensor]:
        """The tensors that this bucket (uint8, on the device they are wanted on) completes.

        Iterate to the end before the buffer is filled again. WeightTransportError when pieces do not follow one
        another, or one is missing at the end.
        """
        description = bytes(buffer[filled.payload : filled.payload + filled.description].cpu().numpy())
        at = 0
        for name, dtype, shape, start, nbytes in json.loads(description):
            if start == 0 and self._tensor is None:
                self._name, self._got = name, 0
                self._tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=buffer.device)
            if self._tensor is None or name != self._name or start != self._got:
                raise WeightTransportError(
                    f"byte {start} of {name} came after byte {self._got} of {self._name} in a stream of weights"
                )
            raw = self._tensor.flatten().view(torch.uint8)
            raw[start : start + nbytes].copy_(buffer[at : at + nbytes])
            at, self._got = at + nbytes, start + nbytes
            if self._got == len(raw):
                tensor, self._tensor = self._tensor, None
                yield name, tensor
                del tensor
            del raw
        if filled.last and self._tensor is not None:
            raise WeightTransportError(f"the stream of weights ended within {self._name}")
