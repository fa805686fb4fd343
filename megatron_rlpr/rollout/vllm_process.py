"""The process settings vLLM needs, and the process state it must not change.

vLLM runs inside the training process, beside Megatron. It reads its settings from environment variables, and while it
starts it reseeds every random generator, replaces torch.set_num_threads and rewrites variables of the launcher.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

_LAUNCHER_VARIABLES = ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "OMP_NUM_THREADS", "NUMEXPR_MAX_THREADS")


def prepare_environment() -> None:
    """Set vLLM's environment variables; call before vllm is imported for the first time in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # ranks share the cores, none may pin them
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override kv_cache_gb
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def process_state_kept(threads: int | None) -> Iterator[None]:
    """Put back what vLLM's start changes: random states, torch.set_num_threads, the thread count, launcher variables, frozen garbage.

    threads: intra-op threads afterwards; None: as many as before.
    """
    set_num_threads = torch.set_num_threads
    threads = threads or torch.get_num_threads()
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
