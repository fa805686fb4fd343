"""Peak memory of a run, in GB (1e9 bytes)."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_resident_gb() -> float:
    """Peak resident memory of this process since it started, in GB.

    Linux keeps it per program image in /proc (VmHWM); getrusage, the fallback, also counts what the process was before
    it executed this program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_device_gb() -> float:
    """Peak memory that torch allocated on this process's GPU, in GB; 0 without CUDA."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
