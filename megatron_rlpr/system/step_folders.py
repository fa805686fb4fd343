"""What a run keeps of its steps: folders or files named step_000040, each complete or absent.

A step is written under a hidden name, forced to disk and renamed; what an interrupted write left goes with the next.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_rlpr.system import disk


class StepFolders:
    """The steps in one folder. Of several ranks one calls `begin`, `finish` and what removes steps; all may write."""

    def __init__(self, folder: Path, suffix: str = "", keep_last: int = 0) -> None:
        """suffix: of files, such as ".parquet"; none for folders. keep_last: how many steps stay; 0: all."""
        self._folder = folder
        self._suffix = suffix
        self._keep_last = keep_last
        self._name = re.compile(rf"step_(\d{{6,}}){re.escape(suffix)}")

    def steps(self) -> list[int]:
        """Complete steps, ascending."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(match.group(1)) for match in map(self._name.fullmatch, names) if match)

    def path(self, step: int) -> Path:
        """Where a complete step is."""
        return self._folder / f"step_{step:06d}{self._suffix}"

    def unfinished(self, step: int) -> Path:
        """Where a step is written."""
        return self._folder / f".partial_{self.path(step).name}"

    def begin(self, step: int) -> Path:
        """Remove what interrupted writes left. Returns where to write `step`, which is not there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".partial_*"):
            _remove(left, ignore_errors=True)
        return self.unfinished(step)

    def finish(self, step: int) -> Path:
        """Put what was written of `step` in its place, then remove all up to it but the last keep_last."""
        unfinished, target = self.unfinished(step), self.path(step)
        for path in (*unfinished.rglob("*"), unfinished):
            _sync(path)
        if target.is_dir():
            self._remove(step)
        os.replace(unfinished, target)
        _sync(self._folder)
        if self._keep_last:
            for old in [other for other in self.steps() if other <= step][: -self._keep_last]:
                self._remove(old)
        return target

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Around all that writes `step`: what fails does not stay, and a full disk and the like are UserErrors."""
        try:
            with disk.writing(self.unfinished(step)):
                yield
        except BaseException:
            with suppress(OSError):
                _remove(self.unfinished(step), ignore_errors=True)
            raise

    def forget_after(self, step: int) -> None:
        """Remove later steps: a run that goes on after `step` makes them again, or ends before."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def set_aside_after(self, step: int) -> None:
        """Keep later steps, which are damaged, as damaged_step_...; they push out no older ones."""
        for later in self.steps():
            if later > step:
                aside = self._folder / f"damaged_{self.path(later).name}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path(later), aside)

    def _remove(self, step: int) -> None:
        """Take the name from a step first: a kill while its files go must not leave a part of it as a step."""
        going = self._folder / f".partial_removed_{self.path(step).name}"
        _remove(going, ignore_errors=True)
        os.replace(self.path(step), going)
        _remove(going)


def _remove(path: Path, ignore_errors: bool = False) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=ignore_errors)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
