"""A rank that fails, or never comes, ends the run; nobody waits for it for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "failing_rank.py"


@pytest.mark.parametrize(("fault", "said"), [("error", "RuntimeError: rank 1 broke"), ("silence", "imed out")])
def test_the_other_ranks_do_not_hang(fault: str, said: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(PROGRAM),
        fault,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "output").open("wb") as output:
        status = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, timeout=1200, env=environment, check=False
        ).returncode
    text = (tmp_path / "output").read_text(errors="replace")
    assert status != 0
    assert said in text, text[-4000:]
    assert "the collective came to an end" not in text
