"""Read the golden files: numbers obtained by running the RLPR reference, described in INDEX.json beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

GOLDENS = Path(os.environ.get("RLPR_GOLDENS", Path(__file__).parent))


def load(name: str) -> Any:
    """The parsed content of one golden file of the folder $RLPR_GOLDENS (default: this folder)."""
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def to_float(value: float | int | str) -> float:
    """A stored number; NaN and infinities are stored as the strings "NaN", "Infinity" and "-Infinity"."""
    return float(value)
