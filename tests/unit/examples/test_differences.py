"""docs/differences.md accounts for every quirk of the reference, in agreement with the values the golden tests
correct."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tests" / "goldens"))

from corrections import CORRECTIONS  # noqa: E402

TEXT = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| Q(\d+) \| (.+) \| (.+) \| (.+) \| `(.+)` \|$", re.MULTILINE)
STATUSES = {"kept", "corrected", "not applicable", "kept; corrected in part"}


def status_of() -> dict[int, str]:
    return {int(number): status for number, _, status, _, _ in ROW.findall(TEXT)}


def test_every_quirk_has_exactly_one_line() -> None:
    assert [int(number) for number, *_ in ROW.findall(TEXT)] == list(range(1, 29))
    assert len(re.findall(r"^\|.*\bQ\d+\b", TEXT, re.MULTILINE)) == 28, "a line that is not of the form is no line"


def test_every_quirk_is_kept_corrected_or_not_applicable() -> None:
    assert set(status_of().values()) <= STATUSES


@pytest.mark.parametrize("quirk", sorted({quirk for quirk, _ in CORRECTIONS.values() if re.fullmatch(r"Q\d+", quirk)}))
def test_a_quirk_whose_golden_values_are_corrected_is_not_said_to_be_kept(quirk: str) -> None:
    status = status_of()[int(quirk[1:])]
    assert "corrected" in status or status == "not applicable"


def test_the_files_where_things_are_decided_exist() -> None:
    named = {file for *_, file in ROW.findall(TEXT)} | set(re.findall(r"`([\w./-]+/[\w./-]+\.py)`", TEXT))
    assert len(named) > 20
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []


def test_the_keys_it_speaks_of_exist() -> None:
    from megatron_rlpr.config.keys import all_keys, sections

    named = set(re.findall(rf"`((?:{'|'.join(sections())})\.\w+)", TEXT))
    assert len(named) > 8
    assert named <= set(all_keys())
