"""Imports between rooms run one way: the contracts of pyproject.toml are kept, and would be noticed when broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]


def test_the_code_keeps_its_import_contracts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("upper_imports_lower", [True, False])
def test_an_import_that_runs_the_wrong_way_is_caught(
    upper_imports_lower: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert (status == EXIT_STATUS_SUCCESS) == upper_imports_lower
    assert (f"{name}.lower is not allowed to import {name}.upper" in capsys.readouterr().out) != upper_imports_lower
