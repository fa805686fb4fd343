"""What one model family must say about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.weights.mapping import ParamMapping
from megatron_rlpr.weights.shape import ModelShape


@dataclass(frozen=True)
class Architecture:
    """A model family.

    name: class name in `architectures` of config.json.
    shape: reads a config.json; raises UserError for fields it does not implement.
    parameters: every parameter in both worlds, in export order.
    """

    name: str
    shape: Callable[[Mapping[str, Any]], ModelShape]
    parameters: Callable[[ModelShape], tuple[ParamMapping, ...]]
