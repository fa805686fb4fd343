"""The process settings vLLM needs, and the process state it must not change.

vLLM runs inside the training process, beside Megatron. It reads its settings from environment variables, and while it
starts it reseeds every random generator, replaces torch.set_num_threads and rewrites variables of the launcher.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LAUNCHER_VARIABLES = ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "OMP_NUM_THREADS", "NUMEXPR_MAX_THREADS")


def prepare_environment() -> None:
    """Set vLLM's environment variables; call before vllm is imported for the first time in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # ranks share the cores, none may pin them
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override kv_cache_gb
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def process_state_kept(threads: int) -> Iterator[None]:
    """Put back what vLLM's start changes: random states, torch.set_num_threads, launcher variables, frozen garbage.

    threads: intra-op threads afterwards.
    """
    set_num_threads = torch.set_num_threads
    variables = {name: os.environ.get(name) for name in _LAUNCHER_VARIABLES}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        gc.unfreeze()
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


@contextlib.contextmanager
def engine_call(eager: bool) -> Iterator[None]:
    """Around every call into a running engine.

    The sampler draws from torch's global CPU generator even when each request has its own, so that state is kept.
    eager: also switches off torch.compile, which vLLM uses for one small kernel of its sampler even when it is told
    to run eagerly; compiling that costs seconds per process and needs a C++ compiler.
    """
    with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager" if eager else "default"):
        yield


@contextlib.contextmanager
def shared_memory_of_this_start() -> Iterator[None]:
    """Let the ranks of this start, and no others, meet in vLLM's shared memory on CPU. Collective over all ranks.

    vLLM names those segments after the ranks alone when torchrun starts it: a run that ended without tidying up leaves
    segments with which no later one can start, and two runs on one machine would write into each other's. Once all
    ranks have mapped them the names are not needed any more, and go.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    token = [f"megatron_rlpr_{uuid.uuid4().hex[:12]}"]
    dist.broadcast_object_list(token, src=0)
    plain_name = _CPUSHMDistributed.make_group_name

    def unique_name(communicator: Any) -> str:
        return token[0] + plain_name(communicator).replace("/", "")

    shared: Any = _CPUSHMDistributed
    shared.make_group_name = staticmethod(unique_name)
    try:
        yield
        dist.barrier()
    finally:
        shared.make_group_name = staticmethod(plain_name)
        for segment in Path("/dev/shm").glob(f"{token[0]}*"):
            segment.unlink(missing_ok=True)
