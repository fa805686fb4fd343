"""The model families this project trains, one file each.

A family is a module of this folder with a constant `ARCHITECTURE`; it is found by being here.

fields              typed, checked access to the fields of a config.json
dense_decoder       the layers that most families share, read from such an architecture's fields
mixture_of_experts  the same with routed experts
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures.dense_decoder import Architecture
from megatron_rlpr.weights.architectures.fields import architecture_name
from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape

__all__ = ["SUPPORTED", "Architecture", "ModelShape", "hf_manifest", "model_shape", "parameter_table"]


def _found() -> dict[str, Architecture]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    architectures = [m.ARCHITECTURE for m in modules if hasattr(m, "ARCHITECTURE")]
    return {a.name: a for a in sorted(architectures, key=lambda a: a.name)}


_BY_NAME = _found()

SUPPORTED: tuple[str, ...] = tuple(_BY_NAME)
"""Supported class names, as they stand in `architectures` of a config.json."""


def model_shape(hf_config: Mapping[str, Any]) -> ModelShape:
    """What the Megatron model is built from.

    Raises UserError for an unsupported architecture, a missing or ill-typed field, and any field that would make
    the model compute other numbers than transformers does.
    """
    name = architecture_name(hf_config)
    if name not in _BY_NAME:
        raise UserError(f"architecture {name} is not supported; supported are {', '.join(SUPPORTED)}")
    return _BY_NAME[name].shape(hf_config)


@lru_cache(maxsize=4)
def parameter_table(shape: ModelShape) -> tuple[ParamMapping, ...]:
    """Every parameter of the model in both worlds, in export order."""
    return _BY_NAME[shape.architecture].parameters(shape)


def hf_manifest(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> full shape of every tensor of the model, in export order; tied embeddings once."""
    return {t.name: t.shape for mapping in parameter_table(shape) if not mapping.is_copy for t in mapping.hf}
