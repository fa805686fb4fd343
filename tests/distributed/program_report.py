"""Run one of `programs` and take what it reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warm_start import start

PROGRAMS = Path(__file__).parent / "programs"


def report_of(program: str, work: Path, *arguments: object, timeout_s: int) -> dict[str, Any]:
    """The object behind the last RESULT that the program prints; its output goes to a file in work."""
    status, text = start(str(PROGRAMS / program), arguments, work / "output").end(timeout_s)
    assert status == 0, text[-4000:]
    found: dict[str, Any] = json.loads(text.rpartition("RESULT ")[2])
    return found


def on_two_ranks(program: str, work: Path) -> list[dict[str, Any]]:
    """What each of two trainer ranks wrote down of `on_two_models`."""
    models = on_two_models(program, work, "result", ranks=2)
    return [json.loads((models / f"result.{rank}.json").read_text()) for rank in range(2)]


def alike(seen: list[dict[str, Any]], apart_from: tuple[str, ...]) -> dict[str, Any]:
    """What both ranks saw, and both the same."""
    first, second = [{name: value for name, value in one.items() if name not in apart_from} for one in seen]
    for name, value in first.items():
        assert value == second[name], name
    return first


def on_two_models(program: str, work: Path, result: str = "result.json", ranks: int = 0) -> Path:
    """Run a program with engines in Ray on two small models; the folder of these, where it has written its result."""
    sys.path.insert(0, str(PROGRAMS.parents[1] / "unit" / "rollout"))
    from tiny_models import save_two_llamas

    models = save_two_llamas(work)
    arguments = [models, models / result]
    status, text = start(str(PROGRAMS / program), arguments, models / "log", ranks=ranks, ray_workers=True).end()
    assert status == 0, text[-6000:]
    return models
