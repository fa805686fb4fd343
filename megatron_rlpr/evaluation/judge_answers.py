"""The judge's replies on disk, so that nothing is asked twice: by no later validation and by no run that shares them.

One file for every reply, put there in one step: a reader, or a start after a kill, finds a whole one or none. Whatever
is in such a file that this module would not have written counts as absent, and the question is asked again. A file
holds what was asked and what came back; it never holds a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rlpr.system.atomic_file import write_text


class JudgeAnswers:
    """Replies by question, under one model and its settings.

    asked: what a reply depends on besides the question, JSON-serialisable. Several processes may use one folder: who
    writes last wins.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self._folder = folder
        self._asked = json.loads(json.dumps(dict(asked)))

    def find(self, question: str) -> str | None:
        """The reply to a question; None where there is none, or none that can be trusted."""
        try:
            entry = json.loads(self._path(question).read_bytes())
            reply, told = entry["reply"], (entry["asked"], entry["question"])
            whole = entry["sha256"] == _digest([self._asked, question, reply])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, damaged, or not to be read
            return None
        return reply if whole and told == (self._asked, question) and isinstance(reply, str) else None

    def keep(self, question: str, reply: str) -> None:
        """Store a reply. Raises UserError where the system refuses it."""
        content = {"asked": self._asked, "question": question, "reply": reply}
        entry = {**content, "sha256": _digest(list(content.values()))}
        write_text(self._path(question), json.dumps(entry) + "\n")

    def _path(self, question: str) -> Path:
        name = _digest([self._asked, question])
        return self._folder / name[:2] / f"{name}.json"


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
