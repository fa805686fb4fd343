"""Transformer Engine on a machine without a GPU: its Python, with the kernels of tests/transformer_engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_rlpr.types import UserError

_ROOT = Path(__file__).parents[1]
_KERNELS = _ROOT / "tests" / "transformer_engine" / "kernels"


def are_here() -> bool:
    """Whether both are: setup_env.sh puts Transformer Engine's Python into build/ (TE_FOLDER names another folder)."""
    folder = Path(os.environ.get("TE_FOLDER", _ROOT / "build" / "transformer_engine"))
    return _KERNELS.is_dir() and (folder / "transformer_engine").is_dir()


def install() -> Callable[[str], Any]:
    """Put them in place, before anything imports Megatron-Core; returns what chooses the GPU that a recipe needs."""
    if not _KERNELS.is_dir():
        raise UserError(f"emulated kernels need the project's checkout: {_KERNELS} is not there")
    sys.path.insert(0, str(_KERNELS))
    import te_on_cpu

    te_on_cpu.install()
    pretend: Callable[[str], Any] = te_on_cpu.pretend_gpu
    return pretend
