"""Output folders that are either complete or not there.

A tool builds its files in a hidden sibling folder, seals them with a list of their SHA-256 sums (`sealed.json`, beside
what they were made from) and renames the folder into place. A later run trusts the output only after every sum has been
computed again. The checkpoints of a run carry the same seal; its ranks share the sums (`actor.checkpoint`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_rlpr.system.atomic_file import write_text
from megatron_rlpr.system.disk import refusal, writing
from megatron_rlpr.types import UserError

SEAL = "sealed.json"


def make_once(folder: Path, made_from: Mapping[str, Any], build: Callable[[Path], None]) -> bool:
    """Fill `folder` by calling build(staging folder), unless it already holds a complete output of the same origin.

    made_from: JSON object that names everything the content depends on. Returns True when build was called. Raises
    UserError when something else, or something incomplete, is in the way: a tool deletes only what it just made.
    """
    origin = json.loads(json.dumps(made_from))
    with writing(folder), _only_one(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            _refuse_unless_sealed(folder, origin)
            return False
        # The name says what is being built, so that a build may go on with what an interrupted one of it left.
        tag = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:8]
        staging = folder.with_name(f".{folder.name}.{tag}.unfinished")
        staging.mkdir(parents=True, exist_ok=True)
        try:
            build(staging)
            seal(staging, origin, {name: sha256(staging / name) for name in files(staging)})
        except UserError:
            _drop_if_empty(staging)
            raise
        except BaseException as error:  # torch's CheckpointException is no Exception
            if refused := refusal(error, folder):
                shutil.rmtree(staging, ignore_errors=True)  # it may be what fills the disk
                raise refused from error
            raise
        if folder.exists():
            folder.rmdir()
        os.replace(staging, folder)
        return True


def problems(folder: Path) -> list[str]:
    """What speaks against trusting the folder, one sentence each; empty when its seal and all sums agree."""
    try:
        sums = sealed_sums(folder)
    except UserError as error:
        return [str(error)]
    missing = [f"{name} is missing" for name in sums if not (folder / name).is_file()]
    return missing or [found for file in sums.items() if (found := problem(folder, file))]


def sealed_sums(folder: Path) -> dict[str, str]:
    """File -> sum as the seal has them. Raises UserError, which says of the seal what is wrong with it."""
    try:
        return dict(json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError as error:
        raise UserError(f"{SEAL} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{SEAL} is not readable") from error


def problem(folder: Path, file: tuple[str, str]) -> str:
    """What speaks against one file (name, sum) of a seal; empty when its sum agrees."""
    name, expected = file
    try:
        return "" if sha256(folder / name) == expected else f"{name} has changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content; a link is followed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def empty(folder: Path) -> None:
    """Remove what an interrupted build left in its own staging folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _drop_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def files(folder: Path) -> list[str]:
    """What a seal covers: all files, by their names below the folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def seal(folder: Path, made_from: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Write the seal of a folder with these sums of its `files`."""
    write_text(folder / SEAL, json.dumps({"made_from": made_from, "files": sums}, indent=2) + "\n")


def _refuse_unless_sealed(folder: Path, origin: Mapping[str, Any]) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder or nothing; give another --out")
    found = problems(folder)
    if found:
        fix = "remove the folder and run the same command again"
        raise UserError(f"{folder}: not a complete output of this tool ({found[0]}); {fix}")
    before = json.loads((folder / SEAL).read_text(encoding="utf-8"))["made_from"]
    differing = sorted(key for key in {*before, *origin} if before.get(key) != origin.get(key))
    if differing:
        key = differing[0]
        raise UserError(
            f"{folder}: was made with {key}={before.get(key)!r}, now {key}={origin.get(key)!r} is asked for; "
            "remove the folder or give another --out"
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let a second process that wants the same folder wait for the first, and say so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is making it, waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
