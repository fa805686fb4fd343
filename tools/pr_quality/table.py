"""The figures as Markdown, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_rlpr.evaluation.intervals import Interval
from tools.pr_quality.measures import LESS_BASE, MEAN_PROBABILITY, RULE_GRADE, SEQUENCE_PROBABILITY
from tools.pr_quality.quality import Quality

BRIEF = (MEAN_PROBABILITY, LESS_BASE, SEQUENCE_PROBABILITY, RULE_GRADE)
"""What is shown of every category; the JSON has all."""


def tables(found: Quality) -> str:
    """A row per measure, then one per category."""
    headings = ("measure", "AUC, all pairs", "AUC, pairs within a question", f"{MEAN_PROBABILITY} minus it")
    rows = [
        (name, shown(area), shown(found.within[name]), shown(found.differences.get(name), "+.3f"))
        for name, area in found.overall.areas.items()
    ]
    text = _table(headings, rows)
    if found.categories:
        parts = [
            (category, str(part.questions), f"{part.responses} ({part.right})", *(shown(part.areas[n]) for n in BRIEF))
            for category, part in found.categories.items()
        ]
        text += "\n" + _table(("category", "questions", "responses (right)", *BRIEF), parts)
    return text


def record(found: Quality) -> dict[str, Any]:
    """The same and every category's measures, for JSON; None for what is no number."""
    return dict(_plain(asdict(found)))


def shown(value: Interval | None, form: str = ".3f") -> str:
    """The value [low, high]."""
    if value is None or math.isnan(value.mean):
        return "–"
    if math.isnan(value.low):
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
