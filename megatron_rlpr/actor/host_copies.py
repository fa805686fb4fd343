"""Tensors whose memory moves to the host and back as a whole: what is a view of what stays as it is.

Whole storages move, not tensors. Megatron's parameters, masters and Adam moments are views into each other in ways that
depend on precision and optimizer; of a storage that is emptied and filled again nobody notices. Meanwhile its tensors
must not be touched: that is a segmentation fault on the CPU and an illegal address on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class HostCopies:
    """Storages that are on the host, and the host's memory for them, which is kept for the next time (pinned on a GPU).

    On a CPU the "host" is other memory of the same machine: real copies, and storages that are really released.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._away: dict[int, tuple[torch.UntypedStorage, torch.Tensor]] = {}
        """By the address of a storage object: the emptied storage and its bytes."""
        self._spare: dict[int, list[torch.Tensor]] = {}
        """Host memory by its size."""

    @property
    def nbytes(self) -> int:
        """Bytes that are on the host now."""
        return sum(host.numel() for _, host in self._away.values())

    def offload(self, tensors: Iterable[torch.Tensor]) -> int:
        """Move the storages of these tensors to the host and release them; returns the bytes that moved.

        At most one storage exists twice on a CPU. On a GPU all copies are under way at once, and it waits for the last.
        """
        storages = {s.data_ptr(): s for s in (t.untyped_storage() for t in tensors) if s.nbytes()}
        moved = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        for storage in storages.values():
            size = storage.nbytes()
            host = self._host(size)
            with self._copying():
                host.copy_(_bytes(storage), non_blocking=True)
            self._away[storage_key(storage)] = storage, host
            moved += size
            if not self._cuda:
                storage.resize_(0)
        if self._stream is not None:
            self._stream.synchronize()
            for storage in storages.values():
                storage.resize_(0)
        return moved

    def restore(self) -> int:
        """Bring everything back; returns the bytes. On a GPU the copies are under way: `arrived` before any use."""
        moved = self.nbytes
        while self._away:
            _, (storage, host) = self._away.popitem()
            storage.resize_(host.numel())
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream())  # what used this memory before
            with self._copying():
                _bytes(storage).copy_(host, non_blocking=True)
            self._spare.setdefault(host.numel(), []).append(host)
        return moved

    def arrived(self) -> None:
        """What is done from now on comes after the copies of `restore`."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def values(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, wherever its storage is: itself, or its copy, on its device. Read it, never write."""
        away = self._away.get(storage_key(tensor.untyped_storage())) if self._away else None
        if away is None:
            return tensor
        flat = away[1].view(tensor.dtype)
        found = flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        return found.to(tensor.device, non_blocking=True)

    def _copying(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _host(self, size: int) -> torch.Tensor:
        spare = self._spare.get(size)
        return spare.pop() if spare else torch.empty(size, dtype=torch.uint8, pin_memory=self._cuda)


def storage_key(storage: torch.UntypedStorage) -> int:
    """The same for all tensors of a storage, also while it is empty."""
    return storage._cdata


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
