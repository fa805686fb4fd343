"""Every metric has one name and one meaning, and the document lists them."""

from __future__ import annotations

from pathlib import Path

from megatron_rlpr.tracking.console import STEP_LINE
from megatron_rlpr.tracking.metric_names import REQUIRED, VALIDATION_METRICS, document, undocumented


def test_the_document_is_made_from_the_table() -> None:
    path = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert path.read_text(encoding="utf-8") == document(), (
        "run python -m megatron_rlpr.tracking.metric_names > docs/metrics.md"
    )


def test_what_is_required_or_shown_is_documented() -> None:
    assert undocumented([*REQUIRED, *STEP_LINE]) == []


def test_a_pattern_stands_for_names_of_its_form() -> None:
    assert all(undocumented([name.replace("{", "").replace("}", "")]) == [] for name in VALIDATION_METRICS)


def test_an_unknown_name_is_found() -> None:
    unknown = ["actor/los", "reward/mean/maths", "val/x/y", "val/a/b/c/format"]
    assert undocumented(["reward/mean", *unknown, "val/held_out/greedy/format"]) == unknown
