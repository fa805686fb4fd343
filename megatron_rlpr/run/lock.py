"""One run at a time in a run folder: two would overwrite each other's checkpoints and logs."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from megatron_rlpr.types import UserError

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def hold(folder: Path) -> IO[str]:
    """Take the folder until the returned file is closed; the kernel gives it back when this process ends in any way.

    Raises UserError while another process holds it. On a file system without locks nothing is checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return file
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"{folder} is in use by another run (process {holder}): wait until it ends, stop it, or choose another "
            "trainer.name"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
