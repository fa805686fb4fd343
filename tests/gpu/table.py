"""Print what the tests recorded as one table (check, value, bound, verdict) and write it as one JSON file.

python tests/gpu/table.py RECORDS.jsonl OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a recorded value, one a test without values or that did not pass, one a measurement."""
    with_values = {(r["part"], r["test"]) for r in records if "what" in r}
    found = []
    for record in records:
        if "what" in record:
            value, bound = record["value"], record.get("bound")
            verdict = "measured" if bound is None else "ok" if value <= bound else "FAILED"
            check = f"{record['part']}: {record['test']}: {record['what']}"
            found.append({"check": check, "value": value, "bound": bound, "verdict": verdict})
        elif record["outcome"] != "passed" or (record["part"], record["test"]) not in with_values:
            verdict = {"passed": "ok", "skipped": "skipped"}.get(record["outcome"], "FAILED")
            reason = f" ({record['reason']})" if record["reason"] else ""
            check = f"{record['part']}: {record['test']}{reason}"
            found.append({"check": check, "value": None, "bound": None, "verdict": verdict})
    return found


def main(source: Path, target: Path) -> int:
    """0 when nothing failed."""
    found = rows([json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()])
    target.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for row in found:
        number, bound = ("-" if x is None else f"{x:.4g}" for x in (row["value"], row["bound"]))
        print(f"{row['verdict']:<8} {number:>11} {bound:>9}  {row['check']}")
    failed = sum(row["verdict"] == "FAILED" for row in found)
    print(f"{len(found)} rows, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
