"""Whether two processes can share memory."""

from __future__ import annotations

import os
from pathlib import Path


def this_host() -> str:
    """Equal in processes that can meet in shared memory: same running kernel, same network namespace, same user.

    The namespace is that of the sockets through which the memory is passed on; two containers of one machine differ in
    it.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/net')} {os.getuid()}"
