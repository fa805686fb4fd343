"""What a file system refuses, as one line that names the place, the cause and the fix; room before it is needed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_rlpr.types import UserError

_AGAIN = "then run the same command again"
_FIXES = {
    errno.ENOSPC: f"free space there, {_AGAIN}",
    errno.EDQUOT: f"free space there or raise the quota, {_AGAIN}",
    errno.EFBIG: f"raise the limit of file sizes (ulimit -f), {_AGAIN}",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.ENOTDIR: "a part of the path is a file, choose another",
    errno.EISDIR: "expected a file, found a folder",
    errno.EEXIST: "something else has that name, choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link there leads to itself",
    errno.EIO: "is the disk sound?",
}
_NUMBER = re.compile(r"(?:\[errno |\(os error )(\d+)", re.IGNORECASE)  # in the texts of pyarrow, torch, safetensors
_ALMOST_NOTHING = 2**24
"""Bytes left on a disk on which torch, which forgets why it could not write, has just failed."""
_TORCH_CANNOT_WRITE = re.compile(
    r"PytorchStreamWriter failed|inline_container.*unexpected pos|Worker failure: An error is caught"
)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """UserError for what the system refuses while the body writes at or below place, whatever library calls it."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        refused = refusal(error, place)
        if refused is None:
            raise
        raise refused from error


def refusal(error: BaseException, place: Path | None = None) -> UserError | None:
    """What the system refused, if that is at the bottom of an error. place: where, if the error does not know."""
    causes = list(_causes(error))
    for cause in causes:
        number, where = (cause.errno, cause.filename) if isinstance(cause, OSError) else (None, None)
        named = _NUMBER.search(str(cause))
        number = number or (int(named[1]) if named else None)
        where = place if where is None or not isinstance(where, str | os.PathLike) else where
        if number in _FIXES and where is not None:
            return UserError(f"{where}: {os.strerror(number)}; {_FIXES[number]}")
    if place is None or not any(_TORCH_CANNOT_WRITE.search(str(cause)) for cause in causes):
        return None
    if _free(place) < _ALMOST_NOTHING:
        return UserError(f"{place}: {os.strerror(errno.ENOSPC)}; {_FIXES[errno.ENOSPC]}")
    return UserError(f"{place}: torch cannot write there; is there a quota, or a limit of file sizes (ulimit -f)?")


def require_room(folder: Path, nbytes: int, what: str) -> None:
    """UserError unless the file system of folder, which may not be there yet, has room for nbytes of `what`."""
    free = _free(folder)
    if free < nbytes:
        raise UserError(
            f"{folder}: {what} needs {nbytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; {_FIXES[errno.ENOSPC]}"
        )


def _free(place: Path) -> int:
    return shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.is_dir())).free


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, what other ranks report included (torch's CheckpointException)."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        told = getattr(cause, "failures", None)
        others = [failed[0] for failed in told.values()] if isinstance(told, dict) else []
        # what was being handled meanwhile need not be the cause, but torch's writer hides it there
        hidden = cause.__context__ if _TORCH_CANNOT_WRITE.search(str(cause)) else None
        waiting += [one for one in (*others, cause.__cause__, hidden) if one is not None]
