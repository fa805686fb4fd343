"""A checksum of weights that is fast on any device and does not depend on the order of the tensors.

A tensor's bytes are laid out as rows of 4096 64-bit words. Sums of rows and sums of columns, each weighted by its
position, modulo 2**64, notice any single changed word and any two that changed places; integer sums are the same in
every order, so CPU and GPU agree. Guards against lost, cut and mixed-up data, not against an attacker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch

_ROW_WORDS = 4096
_ROW_BYTES = 8 * _ROW_WORDS


def tensor_checksum(tensor: torch.Tensor) -> str:
    """Hex digest of a tensor's values, dtype and shape."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = raw.numel() // _ROW_BYTES * _ROW_BYTES
    last = torch.zeros(_ROW_BYTES, dtype=torch.uint8, device=raw.device)
    last[: raw.numel() - whole] = raw[whole:]
    rows, last_row = raw[:whole].view(torch.int64).view(-1, _ROW_WORDS), last.view(torch.int64)
    row_sums = torch.cat([rows.sum(1), last_row.sum()[None]])
    column_sums = rows.sum(0) + last_row
    sums = torch.stack([_weighted(row_sums), _weighted(column_sums)]).tolist()
    return hashlib.sha256(f"{sums} {raw.numel()} {tensor.dtype} {list(tensor.shape)}".encode()).hexdigest()[:16]


def weights_checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hex digest of named tensors, whatever their order."""
    stream = ChecksummedStream(tensors)
    stream.finish()
    return stream.checksum


class ChecksummedStream:
    """Passes named tensors on; `checksum` and `nbytes` tell what has passed in the last iteration.

    Can be iterated as often as what it is made of.
    """

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._tensors = tensors
        self._sums: dict[str, str] = {}
        self._passing: Iterator[tuple[str, torch.Tensor]] | None = None
        self.nbytes = 0

    @classmethod
    def over(cls, tensors: Iterable[tuple[str, torch.Tensor]]) -> ChecksummedStream:
        """A checksummed stream of these tensors: they themselves, if they are one already."""
        return tensors if isinstance(tensors, cls) else cls(tensors)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._sums, self.nbytes = {}, 0
        self._passing = self._pass_on()
        return self._passing

    def _pass_on(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors:
            self._sums[name] = tensor_checksum(tensor)
            self.nbytes += tensor.nbytes
            yield name, tensor

    def finish(self) -> None:
        """Take what the last iteration has left; everything, if there was none."""
        for _ in self if self._passing is None else self._passing:
            continue

    @property
    def checksum(self) -> str:
        """Of everything that has passed so far."""
        lines = "\n".join(f"{name} {self._sums[name]}" for name in sorted(self._sums))
        return hashlib.sha256(lines.encode()).hexdigest()[:32]


def _weighted(sums: torch.Tensor) -> torch.Tensor:
    # Odd weights are invertible modulo 2**64: a single changed sum always changes the result.
    return (sums * (2 * torch.arange(sums.numel(), device=sums.device) + 1)).sum()
