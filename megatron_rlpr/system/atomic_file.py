"""Write a file so that a reader, or a restart after a kill, sees the old text or the new one and nothing between."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_rlpr.system.disk import writing


def write_text(path: Path, text: str) -> None:
    """Put text (UTF-8) at path, replacing what is there in one step; makes the folder when it is missing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
