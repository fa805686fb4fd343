"""Whose layers the policy is made of: Transformer Engine's where it is installed, Megatron-Core's own elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def transformer_engine_is_here() -> bool:
    """Whether Transformer Engine can be imported: its layers are taken then, on whatever device.

    Asked in this one place, so that the spec, the configuration and a run's checks agree. Megatron-Core itself asks
    the same question and takes its fused optimizer.
    """
    return find_spec("transformer_engine") is not None
