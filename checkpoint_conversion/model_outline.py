"""A Megatron model without its weights: its parameters, what they are made of, and how a checkpoint stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from megatron_rlpr.actor.model.tree_policy import build_chunks
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.weights.local_parameters import local_parameters
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape


@dataclass(frozen=True)
class OutlinedParameter:
    """One whole Megatron parameter.

    name: its key in the model's state dict. outline: a tensor of its shape and dtype without storage. stored:
    Megatron's description of where it lies in a checkpoint, where some are several pieces (gate and up projection).
    """

    name: str
    mapping: ParamMapping
    outline: torch.Tensor
    stored: ShardedTensor | ShardedTensorFactory

    @property
    def nbytes(self) -> int:
        return self.outline.nbytes

    def holding(self, data: torch.Tensor) -> ShardedTensor | ShardedTensorFactory:
        """`stored` with these values."""
        return replace(self.stored, data=data)

    def pieces(self, data: torch.Tensor) -> list[ShardedTensor]:
        """What a checkpoint keeps of the parameter with these values; views of them."""
        held = self.holding(data)
        return list(nested_values({0: held.build()})) if isinstance(held, ShardedTensorFactory) else [held]


@dataclass(frozen=True)
class ModelOutline:
    """parameters: in table order, each that a checkpoint stores. state: Megatron's whole sharded state dict."""

    parameters: tuple[OutlinedParameter, ...]
    state: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters)


def outline_model(shape: ModelShape, actor: ActorConfig) -> ModelOutline:
    """The model as this one process would hold it, in actor.dtype. Needs Megatron's process groups, takes no memory.

    Of Megatron's own layers: Transformer Engine's need a GPU, and checkpoints of both have the same names. Raises
    RuntimeError where CUDA is visible: Megatron would make the parameters there.
    """
    if torch.cuda.is_available():
        raise RuntimeError("a model is outlined without GPUs: set CUDA_VISIBLE_DEVICES= before torch is loaded")
    with torch.device("meta"):
        (model,) = build_chunks(shape, actor, own_layers=True)
    state = model.sharded_state_dict()
    name_of = {id(tensor): name for name, tensor in model.named_parameters()}
    parameters = []
    for local in local_parameters([model], shape):
        name = name_of[id(local.tensor)]
        parameters.append(OutlinedParameter(name, local.mapping, local.tensor.detach(), state[name]))
    return ModelOutline(tuple(parameters), state)
