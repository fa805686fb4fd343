"""Over any transport: only what has changed since the last hand-over (`weights.delta`).

Both ends keep the last stream's weights in host memory, as they were exported: the trainer's rank that sends, and every
worker of an engine (whose own parameters are fused, cut and packed). A stream is known by a name that no other one has,
and is taken for the base of the next only where both ends have seen its end and the engine has confirmed its checksum.
What the engine loads, and sums up for its confirmation, are whole tensors again, whatever came.

    trainer  tensor ──compare with its copy──> code ──> transport ──> code ──apply to its copy──> tensor  worker
                └─ not in the copy, or too much has changed ──> the tensor itself ──────────────────┘
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from megatron_rlpr.weights.delta_code import apply_difference, difference
from megatron_rlpr.weights.receiver import Sent, WeightHandoverError
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightSource

_CHANGES = "#changes"
"""Ends the name under which a code travels."""


@dataclass(frozen=True)
class _Kept:
    """The weights that a stream has brought, on the CPU."""

    stream: str
    tensors: dict[str, torch.Tensor]


_kept: dict[int, _Kept] = {}
"""Of this process, a worker of an engine: by its rank."""


@dataclass(frozen=True)
class DeltaSource:
    """See `WeightSource`. stream: the name of what comes. base: of the stream it goes on from; empty: of none."""

    source: WeightSource
    stream: str
    base: str

    def receive(self, worker: int) -> Iterator[NamedTensor]:
        """Whole tensors on the source's device, in memory of their own. WeightHandoverError when this process has not
        kept the base, or a code is damaged; a whole stream has to come next then."""
        kept = _kept.pop(worker, None)
        if self.base and (kept is None or kept.stream != self.base):
            held = "nothing" if kept is None else f"stream {kept.stream}"
            raise WeightHandoverError(f"changes of stream {self.base} came, but worker {worker} has kept {held}")
        tensors = {} if kept is None else kept.tensors
        for name, tensor in self.source.receive(worker):
            plain = name.removesuffix(_CHANGES)
            if plain == name:
                _keep(tensors, name, tensor)
                yield name, tensor
                continue
            if plain not in tensors:
                raise WeightHandoverError(f"changes of {plain} came, of which stream {self.base} had nothing")
            apply_difference(tensors[plain], tensor.cpu())
            yield plain, tensors[plain].to(tensor.device, copy=True)
        _kept[worker] = _Kept(self.stream, tensors)


class DeltaSender:
    """Lives on the trainer's rank that sends, for the whole run."""

    def __init__(self) -> None:
        self.sent: Sent | None = None
        """How the last whole stream left."""
        self._run = uuid.uuid4().hex
        self._tensors: dict[str, torch.Tensor] = {}
        self._edition: int | None = None
        """Whose weights these are; None: nobody's."""

    def stream(self, tensors: Iterable[NamedTensor], edition: int, held: Iterable[int | None]) -> DeltaStream:
        """One stream of an edition's weights (equal numbers mean equal weights) to engines that hold these editions."""
        base = self._edition if self._edition is not None and set(held) == {self._edition} else None
        return DeltaStream(self, tensors, edition, base)

    def coded(self, tensors: Iterable[NamedTensor], edition: int, base: int | None) -> Iterator[NamedTensor]:
        """The tensors as they travel. What is kept is of no use before the end has come."""
        known = self._edition == edition  # an engine was replaced, and gets what the others have
        self._edition = edition if known else None
        nbytes = changed = total = 0
        for name, tensor in tensors:
            code, differing = None, tensor.numel()
            if base is not None and name in self._tensors:
                code, differing = difference(self._tensors[name], tensor)
            if code is not None:
                apply_difference(self._tensors[name], code.cpu())
            elif not known:
                _keep(self._tensors, name, tensor)
            changed, total = changed + differing, total + tensor.numel()
            nbytes += tensor.nbytes if code is None else code.nbytes
            yield (name, tensor) if code is None else (name + _CHANGES, code)
        self._edition, self.sent = edition, Sent(nbytes, changed / max(total, 1))

    def name(self, edition: int | None) -> str:
        """Of the streams of an edition's weights; empty for None."""
        return "" if edition is None else f"{self._run} {edition}"


@dataclass(frozen=True)
class DeltaStream:
    """What one stream sends, once, and where its readers get it. base: the edition that it goes on from."""

    sender: DeltaSender
    tensors: Iterable[NamedTensor]
    edition: int
    base: int | None

    def __iter__(self) -> Iterator[NamedTensor]:
        return self.sender.coded(self.tensors, self.edition, self.base)

    def source(self, source: WeightSource) -> DeltaSource:
        """For who reads this stream from a transport's source."""
        return DeltaSource(source, self.sender.name(self.edition), self.sender.name(self.base))


def _keep(tensors: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
    """A copy on the CPU, in the memory of the one before where there is one."""
    there = tensors.get(name)
    if there is None or (there.dtype, there.shape) != (tensor.dtype, tensor.shape):
        tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    else:
        there.copy_(tensor.detach())
