"""The README says the same in both languages, and every page and file it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README_zh.md"))
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)]+)\)")
PAGES = [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: str) -> list[int]:
    """Their levels, in order."""
    return [len(line.split()[0]) for line in CODE.sub("", page).splitlines() if line.startswith("#")]


def commands(page: str) -> list[str]:
    """Every line of every code block, without the comment that explains it."""
    return [re.sub(r"\s+# .*", "", line) for block in CODE.findall(page) for line in block.splitlines()]


def inline_code(page: str) -> list[str]:
    return sorted(re.findall(r"`([^`\n]+)`", CODE.sub("", page)))


def figures(page: str) -> list[str]:
    """All numbers of the text and its tables."""
    text = LINK.sub("", re.sub(r"`[^`\n]+`", "", CODE.sub("", page)))
    return sorted(re.findall(r"[-+]?[0-9][0-9.,]*[0-9]|[0-9]+", text))


@pytest.mark.parametrize("part", [headings, commands, inline_code, figures, LINK.findall])
def test_both_languages_say_the_same(part: object) -> None:
    assert callable(part)
    english, chinese = (page.read_text() for page in (ENGLISH, CHINESE))
    other = {"README_zh.md": "README.md"}
    assert [other.get(found, found) for found in part(english)] == part(chinese)
    assert len(part(english)) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    places = [place.partition("#")[0] for place in LINK.findall(CODE.sub("", page.read_text())) if "://" not in place]
    assert [place for place in places if not (page.parent / place).exists()] == []
