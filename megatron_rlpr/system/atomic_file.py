"""Write a file so that a reader, or a restart after a kill, sees the old text or the new one and nothing between."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_rlpr.system.disk import writing


def write_text(path: Path, text: str) -> None:
    """Put text (UTF-8) at path, replacing what is there in one step; makes the folder when it is missing."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write the file that this gives: when the body has ended it is forced to disk and takes the place of path."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # hosts may count processes alike
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
