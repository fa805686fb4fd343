"""The page: everything in one file, nothing to load.

Texts of a run are foreign: the template and the script show them as text alone, and the content security policy lets no
script run but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from megatron_rlpr.evaluation.comparison import MEASURES, interval_text
from tools.report.figures import charts, other_charts
from tools.report.run_record import RunRecord
from tools.report.samples import NUMBERS, TEXTS

LONGEST_TEXT = 20_000
"""Characters of a prompt or response that are shown."""
_HERE = Path(__file__).parent
_ABSENT = "–"
_FACTS = ("step", "group", "prompt_index", "sample", "splice_valid", "kept")
_COLUMNS = ("run", "prompt", "correct", "tokens", "reference", *_FACTS, *NUMBERS, *(n for n in TEXTS if n != "prompt"))


def page(
    runs: Sequence[RunRecord], rows: Sequence[tuple[int, dict[str, Any], bool | None]], sample_notes: Sequence[str]
) -> str:
    """The HTML text. rows: (number of the run, stored row, whether it is right). sample_notes: one a run."""
    drawn, not_drawn = charts(runs)
    data = {"runs": [run.name for run in runs], "charts": drawn, "others": other_charts(runs), **_samples(rows)}
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    config = [(key, [_shown(run.config, key) for run in runs]) for key in keys]
    html = environment.get_template("page.html").render(
        runs=runs,
        sample_notes=sample_notes,
        not_drawn=not_drawn,
        before_after=[row for run in runs for row in _before_after(run)],
        config=config,
        different=[(key, values) for key, values in config if len(set(values)) > 1],
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        plotly=get_plotlyjs(),
        hashes=[_hash(script), _hash(get_plotlyjs())],
        data=_json(data),
    )
    return html.encode("utf-8", "replace").decode()  # JSON may name halves of characters, which no file can hold


def _samples(rows: Sequence[tuple[int, dict[str, Any], bool | None]]) -> dict[str, Any]:
    """Prompts once each; of every row the values of `columns`."""
    prompts: dict[str, int] = {}
    made = []
    for run, row, correct in rows:
        log_probs = row["reference_log_probs"] or []
        own = {
            "run": run,
            "prompt": prompts.setdefault(_cut(row["prompt"]), len(prompts)),
            "correct": correct,
            "tokens": len(row["response_tokens"]),
            "reference": [[t, math.exp(p)] for t, p in zip(row["reference_tokens"] or [], log_probs, strict=True)],
        }
        texts = {name: _cut(row[name] or "") for name in TEXTS}
        made.append([{**row, **texts, **own}[name] for name in _COLUMNS])
    return {"prompts": list(prompts), "columns": _COLUMNS, "rows": made}


def _cut(text: str) -> str:
    """The text, or its beginning and end where it is too long to be shown."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _before_after(run: RunRecord) -> list[list[str]]:
    """Rows of run, set, measure, before, after, paired difference, p of the sign test."""
    summary = run.summary
    if not summary:
        return []
    try:
        sets = {f"{summary['validation_set']}/{summary['decoding']}": summary, **summary["other_sets"]}
        return [
            [
                *(run.name, name, MEASURES.get(measure, measure)),
                *(
                    interval_text(one["before"][measure]),
                    interval_text(one["after"][measure]),
                    interval_text(change, "+"),
                ),
                f"{change['p_value']:.1g}",
            ]
            for name, one in sets.items()
            for measure, change in one["difference"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        run.notes.append(f"summary.json is not as a run writes it ({type(error).__name__}: {error}): no table of it")
        return []


def _shown(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False) if key in config else _ABSENT


def _json(value: Any) -> str:
    """JSON for a script element: no tag can begin in it. Floats with six digits; what is not finite is null."""
    return json.dumps(_compact(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


def _compact(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    return [_compact(item) for item in value] if isinstance(value, list | tuple) else value


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
