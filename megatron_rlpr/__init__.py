"""RLPR (Reinforcement Learning with Reference Probability Reward) on Megatron-Core."""

import sys
import typing

__version__ = "0.1.0"

# Megatron-Core 0.19 imports it from `typing`, which has it from Python 3.12 on.
if sys.version_info < (3, 12):
    from typing_extensions import override

    typing.override = override  # type: ignore[attr-defined]
