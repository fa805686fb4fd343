"""RLPR (Reinforcement Learning with Reference Probability Reward) on Megatron-Core."""

import typing

import typing_extensions

__version__ = "0.1.0"

# Megatron-Core 0.19 imports it from `typing`, which has it from Python 3.12 on.
if not hasattr(typing, "override"):
    typing.override = typing_extensions.override  # type: ignore[attr-defined]
