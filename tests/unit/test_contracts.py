"""Imports between rooms run one way: the contracts of pyproject.toml are kept, and would be noticed when broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS

ROOT = Path(__file__).parents[2]


LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True))
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it configures logging, which closes others' handlers, one of which closes stderr."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(folder)}
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_code_keeps_its_import_contracts() -> None:
    found = lint(ROOT)
    assert found.returncode == EXIT_STATUS_SUCCESS, found.stdout + found.stderr


@pytest.mark.parametrize("upper_imports_lower", [True, False])
def test_an_import_that_runs_the_wrong_way_is_caught(upper_imports_lower: bool, tmp_path: Path) -> None:
    name = "two_rooms_one_way" if upper_imports_lower else "two_rooms_wrong_way"
    package = tmp_path / name
    package.mkdir()
    for file in ("__init__", "upper", "lower"):
        (package / f"{file}.py").touch()
    importer, imported = ("upper", "lower") if upper_imports_lower else ("lower", "upper")
    (package / f"{importer}.py").write_text(f"from {name} import {imported}\n")
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.importlinter]\nroot_package = "{name}"\n[[tool.importlinter.contracts]]\nname = "layers"\n'
        f'type = "layers"\nlayers = ["{name}.upper", "{name}.lower"]\n'
    )
    found = lint(tmp_path)
    assert (found.returncode == EXIT_STATUS_SUCCESS) == upper_imports_lower, found.stderr
    assert (f"{name}.lower is not allowed to import {name}.upper" in found.stdout) != upper_imports_lower
