"""Which parameters of the table this rank's part of the model holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_rlpr.weights.architectures import parameters
from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.mapping import ParamMapping


@dataclass(frozen=True)
class NamedParameter:
    """One parameter of the whole model. layer: number over the whole model, None outside the layers."""

    mapping: ParamMapping
    layer: int | None

    @property
    def hf_names(self) -> list[str]:
        return self.mapping.hf_names(self.layer)


def all_parameters(shape: ModelShape) -> Iterator[NamedParameter]:
    """The whole model's parameters in forward order: embedding, layers, final norm, output layer."""
    table = parameters(shape)
    first_after_layers = max(i for i, m in enumerate(table) if m.per_layer) + 1
    for mapping in table[:first_after_layers]:
        if not mapping.per_layer:
            yield NamedParameter(mapping, None)
    for layer in range(shape.num_layers):
        for mapping in table:
            if mapping.per_layer:
                yield NamedParameter(mapping, layer)
    for mapping in table[first_after_layers:]:
        if not mapping.per_layer:
            yield NamedParameter(mapping, None)


def local_tensors(model: torch.nn.Module, shape: ModelShape) -> dict[NamedParameter, torch.nn.Parameter]:
    """This rank's tensors by their place in the whole model; raises KeyError for a parameter the table does not know.

    A pipeline stage numbers its layers from 0; the offset is that of its first layer. The copy of a tied embedding that
    a last stage holds for its output layer is left out: the first stage's is the one that is loaded and exported.
    """
    offset = model.decoder.layers[0].layer_number - 1 if len(model.decoder.layers) else 0
    left = dict(model.named_parameters())
    found: dict[NamedParameter, torch.nn.Parameter] = {}
    for parameter in all_parameters(shape):
        local_layer = None if parameter.layer is None else parameter.layer - offset
        for pattern in (parameter.mapping.megatron, parameter.mapping.transformer_engine):
            tensor = left.pop(pattern.format(layer=local_layer), None)
            if tensor is not None:
                found[parameter] = tensor
    if shape.tied_embeddings:
        left.pop("output_layer.weight", None)
    if left:
        raise KeyError(f"no Hugging Face name for the Megatron parameters {sorted(left)}")
    return found
