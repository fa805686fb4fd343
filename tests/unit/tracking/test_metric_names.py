"""Every metric has one name and one meaning, and the document lists them."""

from __future__ import annotations

from pathlib import Path

from megatron_rlpr.tracking.console import STEP_LINE
from megatron_rlpr.tracking.metric_names import PATTERNS, REQUIRED, STEP_METRICS, VALIDATION_METRICS, document, undocumented


def test_the_document_is_made_from_the_table() -> None:
    path = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert path.read_text(encoding="utf-8") == document(), "run python -m megatron_rlpr.tracking.metric_names > docs/metrics.md"


def test_what_is_required_or_shown_is_documented() -> None:
    assert undocumented([*REQUIRED, *STEP_LINE]) == []


def test_no_name_is_explained_twice() -> None:
    assert not set(STEP_METRICS) & set(PATTERNS)
    assert all(undocumented([name.replace("{", "").replace("}", "")]) == [] for name in VALIDATION_METRICS)


def test_an_unknown_name_is_found() -> None:
    assert undocumented(["reward/mean", "reward/mean/maths", "val/held_out/greedy/format", "actor/los", "val/x/y"]) == [
        "actor/los",
        "val/x/y",
    ]
