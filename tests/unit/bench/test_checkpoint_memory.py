"""What a checkpoint adds to a rank's memory is bounded: a copy of its share on the host, nothing on the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAYOUTS = {"Qwen2.5-7B, TP2 DP4": 4, "Qwen2.5-72B, TP8 PP8 DP8": 8}
"""Data-parallel ranks of each."""
BF16, MASTER_AND_AVERAGES = 2, 12
"""Bytes of a parameter."""


@pytest.fixture(scope="module")
def points() -> dict[str, dict[str, Any]]:
    """The report of a process of its own: its process groups are fake ones."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "checkpoint", "--json"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {point["layout"]: point for point in json.loads(done.stdout)["points"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saving_copies_a_ranks_share_to_the_host_and_takes_no_gpu_memory(
    points: dict[str, dict[str, Any]], layout: str
) -> None:
    point = points[layout]
    share_gb = (BF16 + MASTER_AND_AVERAGES) * point["parameters"] / LAYOUTS[layout] / 1e9
    assert point["ours_save_host_gb"] == pytest.approx(share_gb, rel=0.02)
    assert point["ours_save_gpu_gb"] < 0.001


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_reads_into_the_memory_that_is_there(points: dict[str, dict[str, Any]], layout: str) -> None:
    assert points[layout]["ours_load_host_gb"] < 0.001
    assert points[layout]["ours_load_gpu_gb"] < 0.001


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_counted_is_what_megatrons_gathering_is_known_to_take(
    points: dict[str, dict[str, Any]], layout: str
) -> None:
    """One fp32 tensor of all parameters, gathered and put together, on the GPU; all three of them on the host."""
    point = points[layout]
    fp32_gb = 4 * point["parameters"] / 1e9
    assert point["gathered_save_gpu_gb"] > fp32_gb
    assert point["gathered_save_host_gb"] > 2 * 3 * fp32_gb
    assert point["gathered_load_host_gb"] == pytest.approx(3 * fp32_gb, rel=0.02)
