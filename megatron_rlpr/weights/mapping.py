"""How one Megatron parameter is made of Hugging Face tensors, and how tensor parallelism cuts it.

Every kind of parameter is a `TensorLayout`: the dimension along which tensor-parallel ranks cut each of its Hugging
Face tensors, and how equally cut pieces are fused into one Megatron tensor. Because fusing works on pieces as on
wholes, a rank's shard is the fusion of its pieces, and everything else follows:

    hf tensors --shard--> one Megatron tensor per rank --join--> hf tensors
    hf tensors --merge--> full Megatron tensor --split--> hf tensors

One kind goes on where its pieces end: more ranks than key/value heads cut the fusion of a head's pieces again.

Pure functions of tensors: no process groups, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import ClassVar

import torch

Shape = tuple[int, ...]
Tensors = tuple[torch.Tensor, ...]
ReadPart = Callable[[str, int | None, int, int], torch.Tensor]
"""(Hugging Face name, dimension, start, stop) -> that part of the tensor; dimension None: all of it."""


@dataclass(frozen=True)
class TensorLayout:
    """One Hugging Face tensor is one Megatron tensor, whole on every tensor-parallel rank."""

    cut_dim: ClassVar[int | None] = None
    """The dimension of the Hugging Face tensors that ranks cut evenly; None: every rank holds all of it."""

    def padded_size(self, size: int, tp_size: int) -> int:
        """Size of the cut dimension over all ranks."""
        return size

    def cuts(self, shapes: Sequence[Shape], tp_size: int) -> tuple[int, int]:
        """Into how many pieces Hugging Face tensors of these shapes are cut, and into how many parts each fusion of
        pieces is then cut along dimension 0: tp_size together. ValueError where ranks cannot share them evenly."""
        return tp_size, 1

    def piece_shape(self, shape: Shape, tp_size: int) -> Shape:
        """Shape of a rank's piece of a Hugging Face tensor of this shape, padding included."""
        if self.cut_dim is None:
            return shape
        size = self.padded_size(shape[self.cut_dim], tp_size)
        if size % tp_size:
            raise ValueError(
                f"{tp_size} tensor-parallel ranks do not divide dimension {self.cut_dim} of a tensor of shape "
                f"{list(shape)}"
            )
        return (*shape[: self.cut_dim], size // tp_size, *shape[self.cut_dim + 1 :])

    def fuse(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """One rank's pieces of the Hugging Face tensors -> its Megatron tensor."""
        (piece,) = pieces
        return piece

    def unfuse(self, fused: torch.Tensor, shapes: Sequence[Shape]) -> Tensors:
        """Inverse of `fuse`; shapes are those of the pieces. The results may be views."""
        return (fused,)


class Replicated(TensorLayout):
    """Norms."""


class Column(TensorLayout):
    """Output features are cut: dimension 0."""

    cut_dim = 0


class Row(TensorLayout):
    """Input features are cut: dimension 1."""

    cut_dim = 1


class Vocab(Column):
    """Token rows are cut, after zero rows that make them a multiple of the ranks."""

    def padded_size(self, size: int, tp_size: int) -> int:
        return ceil(size / tp_size) * tp_size


class GateUp(Column):
    """Gate and up projection: every rank holds [its gate rows; its up rows]."""

    def fuse(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(tuple(pieces))

    def unfuse(self, fused: torch.Tensor, shapes: Sequence[Shape]) -> Tensors:
        return fused.split([shape[0] for shape in shapes])


@dataclass(frozen=True)
class Qkv(Column):
    """Query, key and value projections, interleaved by query group.

    [groups, (heads / groups + 2) * head_dim, ...] flattened over the first two. A group is the query heads that share
    one key/value head. Ranks hold whole groups or, where they are more, an even part of one group's rows, wherever its
    heads end: Megatron gathers what the layer computes with them.
    """

    head_dim: int

    def cuts(self, shapes: Sequence[Shape], tp_size: int) -> tuple[int, int]:
        heads, groups = (shape[0] // self.head_dim for shape in shapes[:2])
        pieces = min(tp_size, groups)
        parts = tp_size // pieces
        rows = (heads // groups + 2) * self.head_dim
        if heads % tp_size or groups % pieces or tp_size % pieces or rows % parts:
            raise ValueError(
                f"{tp_size} tensor-parallel ranks do not divide {heads} attention heads with {groups} key/value heads"
            )
        return pieces, parts

    def fuse(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        groups = pieces[1].shape[0] // self.head_dim
        return torch.cat([p.reshape(groups, -1, *p.shape[1:]) for p in pieces], dim=1).flatten(0, 1)

    def unfuse(self, fused: torch.Tensor, shapes: Sequence[Shape]) -> Tensors:
        groups = shapes[1][0] // self.head_dim
        rows = [shape[0] // groups for shape in shapes]
        by_group = fused.view(groups, sum(rows), *fused.shape[1:])
        return tuple(part.flatten(0, 1) for part in by_group.split(rows, dim=1))


@dataclass(frozen=True)
class HfTensor:
    """A tensor of the Hugging Face model: its name and full shape."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class ParamMapping:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    megatron: its name with the local layer spec, then, where it differs, with Transformer Engine's; layers count over
    the whole model. hf: in the order the layout fuses them. is_copy: of what another entry owns (a tied output layer).
    of_expert: cut by the ranks that share an expert, which may be others than those that share a layer.
    """

    megatron: tuple[str, ...]
    hf: tuple[HfTensor, ...]
    layout: TensorLayout
    is_copy: bool = False
    of_expert: bool = False

    @property
    def kind(self) -> tuple[TensorLayout, tuple[Shape, ...]]:
        """What parameters of all layers, and of all experts, have in common."""
        return self.layout, tuple(tensor.shape for tensor in self.hf)

    def cuts(self, tp_size: int) -> tuple[int, int]:
        """As the layout's, of this parameter's tensors."""
        return self.layout.cuts([t.shape for t in self.hf], tp_size)

    def piece_shapes(self, pieces: int) -> tuple[Shape, ...]:
        """Shapes of one of as many pieces of the Hugging Face tensors. ValueError when they cannot be cut so."""
        return tuple(self.layout.piece_shape(t.shape, pieces) for t in self.hf)

    def shard_shape(self, tp_size: int) -> Shape:
        """Shape of one rank's Megatron tensor. ValueError when tp_size does not divide it."""
        pieces, parts = self.cuts(tp_size)
        shapes = self.piece_shapes(pieces)
        return (sum(shape[0] for shape in shapes) // parts, *shapes[0][1:])

    def shard_numel(self, tp_size: int) -> int:
        """Elements of one rank's Megatron tensor."""
        return prod(self.shard_shape(tp_size))

    def merge(self, hf: Sequence[torch.Tensor]) -> torch.Tensor:
        """Full Hugging Face tensors -> the full Megatron tensor, as a single rank holds it."""
        return self.layout.fuse(hf)

    def split(self, full: torch.Tensor) -> Tensors:
        """Inverse of `merge`. The results may be views of `full`."""
        return self.layout.unfuse(full, self.piece_shapes(1))

    def shard(self, read: ReadPart, tp_rank: int, tp_size: int) -> torch.Tensor:
        """One rank's Megatron tensor from what it needs of the Hugging Face tensors, padding filled with zeros."""
        dim = self.layout.cut_dim
        if dim is None:
            return self.layout.fuse([read(t.name, None, 0, 0) for t in self.hf])
        pieces, parts = self.cuts(tp_size)
        piece, part = divmod(tp_rank, parts)
        mine = [(t, read(t.name, dim, *self.bounds(t, piece, pieces))) for t in self.hf]
        fused = self.layout.fuse([self._pad(values, t, pieces) for t, values in mine])
        return fused.chunk(parts)[part]

    def join(self, shards: Sequence[torch.Tensor]) -> Tensors:
        """All ranks' parts in rank order -> full, contiguous Hugging Face tensors; where possible views of them."""
        dim = self.layout.cut_dim
        if dim is None:
            return (shards[0],)
        pieces, parts = self.cuts(len(shards))
        shapes = self.piece_shapes(pieces)
        fused = [torch.cat(tuple(shards[i : i + parts])) for i in range(0, len(shards), parts)] if parts > 1 else shards
        by_piece = [self.layout.unfuse(whole, shapes) for whole in fused]
        wholes = [torch.cat(cut, dim) if len(cut) > 1 else cut[0] for cut in zip(*by_piece, strict=True)]
        return tuple(t.narrow(dim, 0, hf.shape[dim]).contiguous() for t, hf in zip(wholes, self.hf, strict=True))

    def bounds(self, tensor: HfTensor, tp_rank: int, tp_size: int) -> tuple[int, int]:
        """[start, stop) of a rank's piece along the cut dimension, padding left out; (0, 0) when nothing is cut."""
        dim = self.layout.cut_dim
        if dim is None:
            return 0, 0
        length, size = self.layout.piece_shape(tensor.shape, tp_size)[dim], tensor.shape[dim]
        return min(tp_rank * length, size), min((tp_rank + 1) * length, size)

    def _pad(self, piece: torch.Tensor, tensor: HfTensor, tp_size: int) -> torch.Tensor:
        """A piece with zero rows appended up to its padded shape."""
        missing = self.layout.piece_shape(tensor.shape, tp_size)[0] - piece.shape[0]
        return torch.cat([piece, piece.new_zeros(missing, *piece.shape[1:])]) if missing else piece
