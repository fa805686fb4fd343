"""The Ray cluster the engines run in: an existing one, or one of this machine that lives and dies with the run."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import guard as ray_guard
from megatron_rlpr.system import stop_signals
from megatron_rlpr.system.process_environment import ON_CPU
from megatron_rlpr.system.quoting import reason
from megatron_rlpr.types import UserError

_OBJECT_STORE = 256 * 2**20
"""For requests and responses; weights do not go through it."""
_ANSWERS_WITHIN_S = 10.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",  # workers without work
}


def connect(address: str, *, cpus: int) -> bool:
    """Connect this process to Ray; True when that started a cluster of its own.

    address: of an existing cluster, "auto" for the one of this machine; empty: RAY_ADDRESS, or else a new local cluster
    with `cpus` logical CPUs, which asks for a token (Ray makes one per user). Call from the main thread: the kernel
    ends a local cluster when the thread that started it ends.
    UserError when no cluster answers.
    """
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    import ray

    address = address or os.environ.get("RAY_ADDRESS", "")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    if address:
        try:
            _knock(address)
            ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers at {address} (rollout.ray_address or RAY_ADDRESS): start one with `ray start "
                f"--head`, or leave both empty to start a local one ({reason(error)})"
            ) from error
        stop_signals.listen_again()
        return False
    free = free_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count(), _ranks_here())
    own = {"num_cpus": cpus, "num_gpus": len(free), "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    with _visible_gpus(free) if torch.cuda.is_available() else nullcontext():
        ray.init(address="local", **own, **options)
    stop_signals.listen_again()
    node = [str(process.pid) for process in psutil.Process().children(recursive=True)]
    subprocess.Popen(
        [sys.executable, "-S", ray_guard.__file__, str(os.getpid()), *node], start_new_session=True, close_fds=True
    )
    return True


def free_gpus(visible: str | None, count: int, ranks: int) -> list[str]:
    """The GPUs of this machine that no trainer rank computes on: those behind the first `ranks` of `count`.

    visible: CUDA_VISIBLE_DEVICES. Ray would find them all and give engines those of the trainer.
    """
    return (visible.split(",") if visible else list(map(str, range(count))))[ranks:count]


def _ranks_here() -> int:
    """Trainer ranks of this machine, each on a GPU of its own."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def _visible_gpus(gpus: Sequence[str]) -> Iterator[None]:
    """What processes started meanwhile see; this one has found its GPU."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _knock(address: str) -> None:
    """OSError unless something listens at HOST:PORT or ray://HOST:PORT: Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_ANSWERS_WITHIN_S).close()


def node_address() -> str:
    """This machine's address as the other nodes of the cluster see it. Ray is connected."""
    import ray

    return str(ray.util.get_node_ip_address())


def engine_resources(settings: EngineSettings) -> dict[str, int]:
    """What Ray reserves for an engine, by Ray's names."""
    return {"CPU": settings.threads, "GPU": settings.tensor_parallel_size if torch.cuda.is_available() else 0}


def check_room(engines: int, settings: EngineSettings) -> None:
    """UserError when the connected cluster cannot hold so many engines."""
    import ray

    there = ray.cluster_resources()
    keys = {"CPU": "rollout.cpus_per_engine", "GPU": "rollout.tensor_parallel_size"}
    for name, each in engine_resources(settings).items():
        if engines * each > there.get(name, 0):
            raise UserError(
                f"rollout.engines={engines} with {each} {name}s each ({keys[name]}) need {engines * each}, the Ray "
                f"cluster has {there.get(name, 0):g}: use fewer engines, or add nodes"
            )


def actor_environment(threads: int, cuda: bool) -> dict[str, str]:
    """Environment variables an engine's process must start with; other nodes do not share this process's."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    return environment if cuda else {**environment, **ON_CPU}
