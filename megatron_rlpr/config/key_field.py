"""How a key is written down: a field of a dataclass that knows its meaning and its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from megatron_rlpr.config.bounds import Bounds, TextBounds


def key(default: Any, meaning: str, bounds: Bounds | TextBounds | None = None) -> Any:
    """A configuration field with its meaning and, for every number and text, its range.

    Mutable defaults are copied for every instance.
    """
    metadata = {"meaning": meaning, "bounds": bounds}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
