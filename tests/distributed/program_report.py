"""Run one of `programs` and take what it reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"


def report_of(program: str, work: Path, *arguments: object, timeout_s: int) -> dict[str, Any]:
    """The object behind the last RESULT that the program prints; its output goes to a file in work."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (work / "output").open("w") as output:
        command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s, env=environment, check=False
        ).returncode
    text = (work / "output").read_text()
    assert code == 0, text[-4000:]
    found: dict[str, Any] = json.loads(text.rpartition("RESULT ")[2])
    return found
