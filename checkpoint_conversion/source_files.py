"""The files something is made from, and whether they are still the same when it is finished."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_rlpr.system.sealed_folder import sha256
from megatron_rlpr.types import UserError


class SourceFiles:
    """Remembers what files held: SHA-256 sums, and marks by which a later change shows without reading them."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._marks = {file: _marks(file) for file in files}
        # A file in a folder of the model's may have the name of one beside the weights.
        names = [file.name for file in self._marks]
        keys = [file.name if names.count(file.name) == 1 else f"{file.parent.name}/{file.name}" for file in self._marks]
        self.sums = {key: sha256(file) for key, file in zip(keys, self._marks, strict=True)}

    def check_unchanged(self) -> None:
        """Raise UserError when a file was written or replaced since it was summed."""
        for file, marks in self._marks.items():
            if not file.is_file() or _marks(file) != marks:
                raise UserError(f"{file} changed while it was converted: run the same command again")


def _marks(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
