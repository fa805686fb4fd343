"""How a conversion's process starts: without GPUs, and giving freed memory back."""

from __future__ import annotations

import os

from megatron_rlpr.system import process_environment


def start() -> None:
    """Make sure this process runs with a conversion's environment. Call first, before anything imports torch.

    A checkpoint is the same wherever it is written, and laying it out on the CPU needs no free GPU. Training's settings
    of the allocator keep what is freed; here the memory of one tensor is to be that of the next.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        os.environ.setdefault(name, str(128 * 1024))  # glibc's own
    process_environment.ensure()
