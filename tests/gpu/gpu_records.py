"""What the checks found, one line of JSON each, in the file that RLPR_GPU_RECORDS names (see table.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

Within = Callable[[float, float, str], None]
"""within(value, bound, what): record it, and fail when the value is above the bound or not a number."""


def record(**fields: Any) -> None:
    """Append a line; RLPR_GPU_PART says in which part of the run it was found."""
    if path := os.environ.get("RLPR_GPU_RECORDS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": os.environ.get("RLPR_GPU_PART", ""), **fields}) + "\n")
