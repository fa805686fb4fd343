"""How one Megatron parameter is made of Hugging Face tensors, and how it is cut over tensor-parallel ranks.

    Hugging Face tensors --merge--> full Megatron tensor --shard--> this rank's tensor
    Hugging Face tensors <--split-- full Megatron tensor <--unshard-- all ranks' tensors

All four are pure tensor functions, so that a round trip can be checked bit by bit without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_rlpr.weights.shape import ModelShape

Kind = Literal["replicated", "row", "vocab", "qkv", "gate_up"]


@dataclass(frozen=True)
class ParamMapping:
    """One parameter in both worlds. Names hold "{layer}" where they belong to a layer.

    megatron: name in the local layer spec; transformer_engine: name in the Transformer Engine spec, where it differs.
    kind: replicated: the same on every rank. row: cut along dim 1. vocab: cut along dim 0, padded with zero rows.
    qkv: query, key and value interleaved by query group, [groups, (heads per group + 2) * head_dim, ...], cut along
    groups. gate_up: each half cut along dim 0 by itself.
    """

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    transformer_engine: str = ""

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.megatron

    def hf_names(self, layer: int | None) -> list[str]:
        """The Hugging Face names, the layer number (over the whole model) filled in."""
        return [name.format(layer=layer) for name in self.hf]


def merge(mapping: ParamMapping, tensors: Sequence[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """Hugging Face tensors, in the mapping's order -> the full Megatron tensor (vocabulary not padded)."""
    if mapping.kind == "qkv":
        groups, dim = shape.num_query_groups, shape.head_dim
        per_group = shape.num_attention_heads // groups
        parts = [t.reshape(groups, n * dim, *t.shape[1:]) for t, n in zip(tensors, (per_group, 1, 1), strict=True)]
        return torch.cat(parts, dim=1).flatten(0, 1)
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def split(mapping: ParamMapping, full: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """Inverse of `merge`; padding rows of the vocabulary are cut off. The results may be views."""
    if mapping.kind == "qkv":
        groups, dim = shape.num_query_groups, shape.head_dim
        per_group = shape.num_attention_heads // groups
        grouped = full.reshape(groups, (per_group + 2) * dim, *full.shape[1:])
        parts = grouped.split([per_group * dim, dim, dim], dim=1)
        return [part.reshape(-1, *full.shape[1:]) for part in parts]
    if mapping.kind == "gate_up":
        return list(full.chunk(2))
    if mapping.kind == "vocab":
        return [full[: shape.vocab_size]]
    return [full]


def shard(mapping: ParamMapping, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The part of the full Megatron tensor that tensor-parallel rank `rank` of `size` holds."""
    match mapping.kind:
        case "replicated":
            return full
        case "row":
            return full.chunk(size, dim=1)[rank]
        case "gate_up":
            return torch.cat([half.chunk(size)[rank] for half in full.chunk(2)])
        case "vocab":
            rows = -(-full.shape[0] // size)
            part = full[rank * rows : (rank + 1) * rows]
            missing = rows - part.shape[0]
            return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
        case "qkv":
            return full.chunk(size)[rank]


def unshard(mapping: ParamMapping, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inverse of `shard`, from the parts of all ranks in rank order (the vocabulary's padding rows stay)."""
    if len(parts) == 1 or mapping.kind == "replicated":
        return parts[0]
    if mapping.kind == "row":
        return torch.cat(list(parts), dim=1)
    if mapping.kind == "gate_up":
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[i] for i in (0, 1) for half in halves])
    return torch.cat(list(parts))
