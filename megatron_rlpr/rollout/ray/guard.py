"""Ends processes when the one that started this program is gone: python ray_guard.py PARENT PID...

A local Ray node dies with its trainer, but Ray's agents wait for the node's server for most of a minute before they
follow. A run that is started in the place of a killed one should not meet them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

_LOOK_EVERY_S = 0.5


def guard(parent: int, processes: list[int]) -> None:
    """Returns after the end of `parent`, the parent of this process, and of `processes`."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    guard(int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
