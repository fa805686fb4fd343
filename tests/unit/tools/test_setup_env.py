"""setup_env.sh: it recognises a finished environment, says what is wrong in one line, and believes nothing
half-made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STAMP = "megatron_rlpr_stamp"
UNFINISHED = "megatron_rlpr_unfinished"


# This Python, but it cannot make environments: a quick end for tests that are about what happens before.
WITHOUT_VENVS = f"""if [ "$1" = -m ]; then echo "disk quota exceeded" >&2; exit 1; fi
exec {sys.executable} "$@\""""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads, in a folder of its own whose name has a space."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("setup_env.sh", "setup.py"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    return folder


def set_up(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with no package index in reach."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PIP_") and key != "PYTHON"}
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = [str(checkout / "setup_env.sh"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env={**settings, **offline, **environment}
    )


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 1, result
    return [line for line in result.stderr.splitlines() if line.startswith("setup_env.sh: error: ")]


def interpreter(folder: Path, name: str, script: str) -> Path:
    """A command that answers as some other Python would."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def environment_without_pip(checkout: Path) -> Path:
    """A real .venv in which no installation can succeed."""
    venv = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=1200)
    return venv


def finished(checkout: Path, kind: str = "cpu") -> Path:
    """A .venv with the stamp of a finished run, made the way the script makes the stamp."""
    sources = "cat setup_env.sh setup.py requirements/*.txt | sha256sum | cut -d' ' -f1"
    digest = subprocess.run(
        ["bash", "-c", sources], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    venv = environment_without_pip(checkout)
    (venv / STAMP).write_text(f"{kind} {checkout} {digest}\n")
    (checkout / "build" / "transformer_engine").mkdir(parents=True)
    return venv


def test_what_the_tests_of_transformer_engine_need_belongs_to_a_finished_environment(checkout: Path) -> None:
    finished(checkout)
    shutil.rmtree(checkout / "build")
    assert "bringing .venv up to date" in set_up(checkout, "cpu").stdout


def test_a_finished_environment_is_left_alone_at_no_cost(checkout: Path) -> None:
    venv = finished(checkout)
    result = set_up(checkout, "cpu", PYTHON="/bin/false")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (venv / STAMP).exists()
    assert not (checkout / ".setup_env.log").exists(), "nothing was looked up or installed"


def test_changed_requirements_are_noticed(checkout: Path) -> None:
    venv = finished(checkout)
    with (checkout / "requirements" / "cpu.txt").open("a") as file:
        file.write("# changed\n")
    assert "bringing .venv up to date" in set_up(checkout, "cpu").stdout
    assert not (venv / STAMP).exists()


def test_pip_failure_shows_the_cause_and_the_log_and_the_next_run_starts_over(checkout: Path) -> None:
    failed = set_up(checkout, "cpu", PYTHON=sys.executable)
    assert errors(failed) == [
        "setup_env.sh: error: pip install failed: the package index has no such version for this Python and machine; "
        "the whole log is .setup_env.log"
    ]
    assert "No matching distribution found for pip==" in failed.stderr
    assert "No matching distribution found for pip==" in (checkout / ".setup_env.log").read_text()
    assert [(checkout / ".venv" / name).exists() for name in (STAMP, UNFINISHED)] == [False, True]
    again = set_up(checkout, "cpu", PYTHON=sys.executable)
    assert again.returncode == 1
    assert "an earlier run was interrupted; starting over" in again.stdout


def test_an_environment_it_did_not_make_is_never_removed(checkout: Path) -> None:
    mine = environment_without_pip(checkout) / "mine"
    mine.write_text("keep")
    for _ in range(2):
        result = set_up(checkout, "cpu")
        assert result.returncode == 1
        assert "bringing .venv up to date" in result.stdout
        assert mine.read_text() == "keep"
        assert not (checkout / ".venv" / STAMP).exists()


def test_an_environment_of_another_folder_is_made_anew_once_there_is_a_python_for_it(
    checkout: Path, tmp_path: Path
) -> None:
    venv = finished(checkout)
    (venv / STAMP).write_text("cpu /some/where/else 0\n")
    refused = set_up(checkout, "cpu", PYTHON="/no/such/python")
    assert errors(refused) == [
        "setup_env.sh: error: PYTHON=/no/such/python is no command; give the path of a Python 3.11 or newer"
    ]
    assert venv.exists()
    failed = set_up(checkout, "cpu", PYTHON=str(interpreter(tmp_path / "bin", "python3", WITHOUT_VENVS)))
    assert "made for another kind, folder or Python; starting over" in failed.stdout
    assert "could not create .venv; the reason is above" in failed.stderr
    assert "disk quota exceeded" in failed.stderr
    assert not (venv / STAMP).exists()


def test_an_unknown_kind_is_refused(checkout: Path) -> None:
    assert errors(set_up(checkout, "gpu")) == [
        "setup_env.sh: error: unknown kind 'gpu'; use ./setup_env.sh cpu or ./setup_env.sh cuda"
    ]


def test_a_python_that_is_too_old_is_named(checkout: Path, tmp_path: Path) -> None:
    old = interpreter(tmp_path / "bin", "python3.9", "echo 3.9")
    (error,) = errors(set_up(checkout, "cuda", PYTHON=str(old)))
    assert f"Python 3.12 or newer is needed, found only {old} (3.9)" in error
    assert not (checkout / ".venv").exists()


def test_a_python_without_the_venv_module_is_named(checkout: Path, tmp_path: Path) -> None:
    bare = interpreter(tmp_path / "bin", "python3", 'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.11 ;; esac')
    (error,) = errors(set_up(checkout, "cpu", PYTHON=str(bare)))
    assert f"{bare} has no venv module" in error
    assert "apt-get install python3.11-venv" in error


def test_launchers_of_absent_pythons_are_passed_over(checkout: Path, tmp_path: Path) -> None:
    interpreter(tmp_path / "first", "python3.11", "echo 'no such version' >&2; exit 127")
    interpreter(tmp_path / "second", "python3.11", WITHOUT_VENVS)
    result = set_up(checkout, "cpu", PATH=f"{tmp_path / 'first'}:{tmp_path / 'second'}:/usr/bin:/bin")
    assert f"with {tmp_path / 'second' / 'python3.11'}" in result.stdout


def test_no_python_at_all_is_said(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "sha256sum", "cut", "dirname", "flock", "sort", "head", "env"):
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    (error,) = errors(set_up(checkout, "cpu", PATH=str(tools)))
    assert "no Python found; install Python 3.11 or newer" in error
