"""What groups of ranks take of files and sockets is what was told before they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program_report import PROGRAMS
from warm_start import start

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("ranks", "tensor", "pipeline"), [(2, 1, 1), (4, 1, 1), (8, 1, 1), (8, 2, 2)])
def test_groups_take_as_many_descriptors_as_was_told(ranks: int, tensor: int, pipeline: int, tmp_path: Path) -> None:
    arguments = [tmp_path, tensor, pipeline]
    status, output = start(str(PROGRAMS / "connected_ranks.py"), arguments, tmp_path / "log", ranks).end(600)
    assert status == 0, output[-4000:]
    for rank in range(ranks):
        found = json.loads((tmp_path / f"found_{rank}.json").read_text())
        # The first rank is connected with all for the store; torch opens ten more for itself.
        assert abs(found["added"] - found["told"]) <= 10 + ranks, (rank, found)
