"""Environment variables that a process must have before it loads torch, and how a process ends.

Some variables are read by the C library and by OpenMP when the process starts, so setting them later has no effect:
`ensure` replaces the process by itself with them set. Values that the user has set are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import shlex
import signal
import sys
import time
from types import ModuleType
from typing import NoReturn, cast

import psutil

_MARK = "MEGATRON_RLPR_ENVIRONMENT"
_GIB = 2**30
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROGRAM_BEGINS_S = 1.0
_HELPERS_END_S = 5.0

# Large activations are allocated and freed all the time; by default glibc maps and unmaps each of them, and touching
# fresh pages costs several times the arithmetic (measured: scoring a batch 2.2 times faster with these three).
ON_CPU = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * _GIB),
    "MALLOC_TRIM_THRESHOLD_": str(4 * _GIB),
    "MALLOC_TOP_PAD_": str(_GIB // 4),
    # One heap instead of one per thread: each keeps its own free memory, and few threads allocate here.
    "MALLOC_ARENA_MAX": "1",
    # Huge pages where the system leaves that to programs (measured: scoring 1.04 times faster).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Idle OpenMP threads of one rank must not spin on the cores of another, but waking one up costs more than most
    # operations: they wait awake for a fraction of a millisecond (measured: scoring with two threads 1.3 times faster).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "100000",
}
_ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    # Transformer Engine multiplies fp32 matrices as TF32 (measured: log-probs are off by 4e-3); cuBLAS heeds this.
    "NVIDIA_TF32_OVERRIDE": "0",
}


def ensure() -> None:
    """Make sure this process runs with the settings above, and ends with its torchrun, as the processes that it forks
    end with it. Call first, before anything imports torch.

    torchrun starts every rank in a session of its own. When it is killed outright its ranks would go on training, in
    the same folder as the run that is started in its place, and so would the processes that write a rank's checkpoint.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent()
    os.register_at_fork(after_in_child=_end_with_parent)
    # Megatron imports it for loggers that are not used here, which leaves two folders in /tmp; tracking takes it back.
    sys.modules.setdefault("wandb", cast(ModuleType, None))
    if os.environ.get(_MARK):
        return
    wanted = dict(_ALWAYS)
    if not os.path.exists("/proc/driver/nvidia/version"):
        wanted.update(ON_CPU)
    environment = {**wanted, **os.environ, _MARK: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command() -> str:
    """The command line that started this run, for a shell: torchrun's, where that started it."""
    return shlex.join((_launcher() or psutil.Process()).cmdline())


def siblings() -> int:
    """How many processes of this run's launcher live, this one included; 0 without one."""
    launcher = _launcher()
    children = launcher.children() if launcher else []
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in children)


def _launcher() -> psutil.Process | None:
    return psutil.Process().parent() if "TORCHELASTIC_RUN_ID" in os.environ else None


def leave(status: int) -> NoReturn:
    """End this process and the helper processes that libraries started in it, without Python's shutdown.

    vLLM's and gloo's threads may outlive the interpreter's shutdown and crash in it. Helper processes (fork servers,
    checkpoint writers) would keep the output pipe open and let a caller wait for ever. Python's resource
    trackers end by themselves, when they have removed the semaphores that the others leave in shared memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    helpers = [child for child in psutil.Process().children(recursive=True) if not _tracks_resources(child)]
    for helper in helpers:
        with contextlib.suppress(psutil.NoSuchProcess):
            helper.kill()
    psutil.wait_procs(helpers, timeout=_HELPERS_END_S)
    os._exit(status)


def _tracks_resources(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        # one that was forked just now looks like this process until it begins its own program
        ours = psutil.Process().cmdline()
        while process.cmdline() == ours and time.time() - process.create_time() < _PROGRAM_BEGINS_S:
            time.sleep(0.01)
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def release_free_memory() -> None:
    """Give the pages of freed blocks back to the system (glibc only).

    With the settings above the C library never does so by itself, and the fragments of differently sized micro-batches
    would add up to several GB over a run.
    """
    library = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
    if trim is not None:
        trim(0)


def default_threads() -> int:
    """CPU threads of one rank: this machine's cores shared by its ranks."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
