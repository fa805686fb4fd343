"""Ranks stop together, whoever of them was asked to, and do not wait for one that has failed; their launcher tells no
more than they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "stopping_ranks.py"


def run(fault: str) -> tuple[int, str, float]:
    """Exit status, output and seconds of two ranks."""
    launch = [sys.executable, "-m", "tools.launch", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "300"
    started = time.monotonic()
    done = subprocess.run(
        [*launch, str(PROGRAM), fault], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def test_both_stop_at_the_same_step_when_one_is_asked() -> None:
    status, output, _ = run("asked")
    assert status == 143
    stops = re.findall(r"rank (\d) stopped at step (\d+) of SIGTERM", output)
    assert sorted(rank for rank, _ in stops) == ["0", "1"], output
    assert len({step for _, step in stops}) == 1, output


def test_a_rank_does_not_wait_for_one_that_has_failed() -> None:
    """torchrun would wait for it for 300 s."""
    status, output, seconds = run("failed")
    assert status == 7, output
    assert seconds < 120
