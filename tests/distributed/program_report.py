"""Run one of `programs` and take what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from warm_start import start

PROGRAMS = Path(__file__).parent / "programs"


def report_of(program: str, work: Path, *arguments: object, timeout_s: int) -> dict[str, Any]:
    """The object behind the last RESULT that the program prints; its output goes to a file in work."""
    status, text = start(str(PROGRAMS / program), arguments, work / "output").end(timeout_s)
    assert status == 0, text[-4000:]
    found: dict[str, Any] = json.loads(text.rpartition("RESULT ")[2])
    return found
