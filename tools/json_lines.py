"""Files of JSON Lines that others made, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_rlpr.system.quoting import quoted, reason
from megatron_rlpr.types import UserError


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Every line that is not blank: its number, counted from 1, and its object or what is wrong with it ("is ...")."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, _object(line)


def _object(line: bytes) -> dict[str, Any] | UserError:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        return UserError(f"is no JSON ({reason(error)})")
    return found if isinstance(found, dict) else UserError(f"is {quoted(found)}, expected a JSON object")
