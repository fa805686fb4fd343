"""Which part of every Hugging Face tensor a rank of a tensor-parallel vLLM engine holds.

Ranks cut a tensor evenly along the dimension that Megatron's layouts cut, but for two things. Where there are more
ranks than key/value heads, neighbours hold the same head. And vLLM pads the vocabulary to a multiple of 64 before it
cuts it, so that the last ranks hold fewer rows, or none.

Pure functions of shapes. vLLM 0.32; compared with its own loaders by tests/unit/rollout/engine_observations.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from megatron_rlpr.weights.architectures import parameter_table
from megatron_rlpr.weights.mapping import (
    Column,
    GateUp,
    HfTensor,
    ParamMapping,
    Qkv,
    Replicated,
    Row,
    Shape,
    TensorLayout,
    Vocab,
)
from megatron_rlpr.weights.shape import ModelShape

VOCAB_MULTIPLE = 64
_KNOWN = (Replicated, Column, Row, Vocab, GateUp, Qkv)


@dataclass(frozen=True)
class EngineRank:
    """A rank among the `size` ranks that share an engine."""

    rank: int
    size: int


WHOLE = EngineRank(0, 1)
"""The only rank of an engine, which holds whole tensors."""


@dataclass(frozen=True)
class Slice:
    """[start, stop) of a Hugging Face tensor along dim; dim None: all of it. shape: of what is cut out.

    padded: what the engine holds along dim, zeros behind `stop - start` included.
    """

    name: str
    shape: Shape
    dim: int | None = None
    start: int = 0
    stop: int = 0
    padded: int = 0

    def of(self, full: torch.Tensor) -> torch.Tensor:
        """The slice of the whole tensor, a view."""
        return full if self.dim is None else full.narrow(self.dim, self.start, self.stop - self.start)


def slices_of(mapping: ParamMapping, engine: EngineRank) -> tuple[Slice, ...]:
    """Of every Hugging Face tensor of a parameter, in its order, what that rank holds.

    ValueError where the ranks cannot share a tensor, or of a layout that this does not know.
    """
    if type(mapping.layout) not in _KNOWN and engine.size > 1:
        raise ValueError(f"it is not known how an engine cuts {mapping.hf[0].name}")
    if isinstance(mapping.layout, Qkv):
        heads = [t.shape[0] // mapping.layout.head_dim for t in mapping.hf]
        if heads[0] % engine.size or max(heads[1], engine.size) % min(heads[1], engine.size):
            raise ValueError(f"{engine.size} ranks do not share {heads[0]} heads with {heads[1]} key/value heads")
    return tuple(_cut(tensor, mapping.layout, position, engine) for position, tensor in enumerate(mapping.hf))


def why_whole(shape: ModelShape, engine_size: int, stage_ranks: int) -> str:
    """Why engines of that many ranks get whole tensors; empty: each of their ranks can get its slices.

    stage_ranks: of a pipeline stage, TP x CP x DP.
    """
    if engine_size == 1:
        return "an engine of one rank holds them"
    if stage_ranks % engine_size:
        return f"its {engine_size} ranks do not divide the {stage_ranks} of a pipeline stage"
    try:
        for mapping in parameter_table(shape):
            slices_of(mapping, EngineRank(0, engine_size))
    except ValueError as error:
        return str(error)
    return ""


def _cut(tensor: HfTensor, layout: TensorLayout, position: int, engine: EngineRank) -> Slice:
    dim = layout.cut_dim
    if dim is None:
        return Slice(tensor.name, tensor.shape)
    size, copies = tensor.shape[dim], 1
    padded = ceil(size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE if isinstance(layout, Vocab) else size
    if isinstance(layout, Qkv) and position > 0:
        copies = max(1, engine.size // (size // layout.head_dim))
    if padded * copies % engine.size:
        raise ValueError(f"{engine.size} ranks do not share dimension {dim} of {tensor.name}, which is {padded}")
    length = padded * copies // engine.size
    start, stop = (min(end * length, size) for end in (engine.rank // copies, engine.rank // copies + 1))
    shape = (*tensor.shape[:dim], stop - start, *tensor.shape[dim + 1 :])
    return Slice(tensor.name, shape, dim, start, stop, length)
