"""A run of all tests leaves none out: every room is in it, and skipping most tests is no success."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
@pytest.mark.parametrize("number", range(110))
def test_some(number):
    if number < {skipped}:
        pytest.skip("no reason")
"""


@pytest.mark.parametrize(("skipped", "status"), [(110, 1), (60, 1), (50, 0), (0, 0)])
def test_a_run_that_skipped_most_tests_fails(skipped: int, status: int, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS.format(skipped=skipped))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, "."]
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == status, run.stdout + run.stderr
    assert ("that shows nothing" in run.stdout) == bool(status)


def test_every_room_of_tests_is_run() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    rooms = {"/".join(path.relative_to(ROOT).parts[:2]) for path in (ROOT / "tests").rglob("test_*.py")}
    assert {*settings["testpaths"], "tests/transformer_engine"} == rooms
    assert "pytest tests/transformer_engine" in (ROOT / "Makefile").read_text()
