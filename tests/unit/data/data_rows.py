"""Rows in the reference's schema."""

from __future__ import annotations

from typing import Any


def row(question: str = "What is six times seven?", answer: str | None = "42", **changes: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "data_source": "unit",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "ability": "maths",
        "extra_info": {"index": 5},
        **changes,
    }
