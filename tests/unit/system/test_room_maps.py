"""The docstring of a room's `__init__.py` is the map of its files: each stands in it by its name, and no other does."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "megatron_rlpr"
ROOMS = ("actor", "config", "packing", "rollout", "run", "weights")
ENTRY = re.compile(r"^((?:[\w*]+/?, )*[\w*]+/?) {2,}\S", re.MULTILINE)
"""A line of a map: `name    what it is` or `name, other    what they are`; a star stands for any ending."""
FOUND_BY_BEING_THERE = re.compile(r"^ARCHITECTURE = ", re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_stands_in_its_map(room: str) -> None:
    """In that of its own folder, or of the folder above."""
    unmapped = [
        str(path.relative_to(PACKAGE))
        for folder in folders(PACKAGE / room)
        for path in contents(folder)
        if not any(fnmatch(path.stem, word) for word in re.findall(r"[\w*]+", map_of(folder) + map_of(folder.parent)))
        and not (path.is_file() and FOUND_BY_BEING_THERE.search(path.read_text(encoding="utf-8")))
    ]
    assert not unmapped, f"describe in the docstring of the folder's __init__.py: {', '.join(unmapped)}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_map_names_no_file_that_is_gone(room: str) -> None:
    gone = [
        f"{name} (megatron_rlpr/{folder.relative_to(PACKAGE)}/__init__.py)"
        for folder in folders(PACKAGE / room)
        for line in ENTRY.findall(map_of(folder))
        for name in line.replace("/", "").split(", ")
        if not any(fnmatch(path.stem, name) for inner in folders(folder) for path in contents(inner))
    ]
    assert not gone


def folders(room: Path) -> list[Path]:
    """A room and its inner rooms."""
    return sorted(file.parent for file in room.rglob("__init__.py"))


def contents(folder: Path) -> list[Path]:
    """Files and inner rooms of one folder."""
    return [
        p
        for p in sorted(folder.iterdir())
        if (p.suffix == ".py" or (p / "__init__.py").is_file()) and p.stem != "__init__"
    ]


def map_of(folder: Path) -> str:
    return ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
