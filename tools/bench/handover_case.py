"""`bench handover`: new weights for an engine here and for ones in other processes, against a plain copy."""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.vllm.colocated import ColocatedRollouts
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.transports.choice import TransportName, Transports
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.interface import WeightSource, WeightTransport, WeightTransportError
from megatron_rlpr.weights.transports.lane import Lane
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport
from tools.bench import policy
from tools.bench.measure import timed, with_peak_memory

_TIMEOUT_S = 600.0
_OTHER_PROCESS: tuple[TransportName, ...] = ("auto", "collective")


def run(folder: Path, actor: ActorConfig, bucket_mb: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Times are medians over repetitions in which everything takes its turn; the first one is dropped.

    copy: every parameter into memory that is there already. export: the stream of Hugging Face tensors, used by nobody.
    checksum: what it adds on one side. shared_memory, collective: the stream to a process that drops it: a transport by
    itself. in_process: a whole hand-over to a vLLM engine here, both sides' checksums included; other_process: the same
    to one in a Ray actor through shared memory (with CUDA a group), other_process_collective: through a group always.
    Memory: this process's peak beyond the start of each; reader_memory: that of the process at the other end.
    """
    built = policy.load(folder, actor, trainable=False)
    exporter = WeightExporter(built.policy.chunks, built.shape, bucket_mb)
    parameters = [p.detach() for chunk in built.policy.chunks for p in chunk.parameters()]
    copies = [torch.empty_like(p) for p in parameters]
    here = HandOver(exporter, ColocatedRollouts(VllmEngine(_settings(folder, actor, threads))))
    ray_cluster.connect("", cpus=2 * threads)
    there = {
        name: HandOver(
            exporter,
            RayRollouts(partial(_pool, folder, actor, threads), partial(_lane, bucket_mb, name), str),
        )
        for name in _OTHER_PROCESS
    }
    nbytes = bucket_mb * 2**20
    transports: dict[str, WeightTransport] = {
        "shared_memory": SharedMemoryTransport(nbytes, _TIMEOUT_S),
        "collective": CollectiveTransport("127.0.0.1", nbytes, _TIMEOUT_S),
    }

    def copy() -> None:
        for target, source in zip(copies, parameters, strict=True):
            target.copy_(source)

    readers = {name: _reader() for name in transports}
    works: dict[str, Callable[[], Any]] = {
        "copy": copy,
        "export": lambda: _use_up(iter(exporter)),
        "export_with_checksum": lambda: _use_up(iter(ChecksummedStream(exporter))),
        **{name: partial(_send, transport, exporter, readers[name]) for name, transport in transports.items()},
        "in_process": lambda: here.send(1),
        "other_process": lambda: there["auto"].send(1),
        "other_process_collective": lambda: there["collective"].send(1),
    }
    measured: dict[str, Callable[[], Any]] = {
        name: partial(_send, transport, exporter, readers[name], measured=True)
        for name, transport in transports.items()
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, int] = {}
    reports: dict[str, Any] = {}
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            if repetition == 0:
                reports[name], memory[name] = with_peak_memory(measured.get(name, work))
            else:
                seconds[name].append(timed(work)[1])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    largest = max(sum(t.nbytes for _, t in bucket) for bucket in exporter.buckets())
    handed_over = [name for name in works if name.startswith(("in_", "other_"))]
    return {
        "nbytes": reports["in_process"].nbytes,
        "bucket_bytes": largest,
        "transport_bucket_bytes": nbytes,
        "same_checksum": len({reports[name].checksum for name in handed_over}) == 1,
        **{f"seconds_{name}": value for name, value in median.items()},
        "export_over_copy": median["export"] / median["copy"],
        "checksum_over_copy": (median["export_with_checksum"] - median["export"]) / median["copy"],
        **{f"{name}_over_copy": median[name] / median["copy"] for name in (*transports, *handed_over)},
        **{f"peak_memory_{name}": value for name, value in memory.items() if name != "copy"},
        **{
            f"{name}_memory_in_buckets": memory[name] / largest
            for name in memory
            if name not in ("copy", "export_with_checksum")
        },
        **{f"{name}_reader_memory_in_buckets": reports[name] / largest for name in transports},
    }


def _use_up(stream: Iterator[Any]) -> None:
    for _ in stream:
        continue


def _settings(folder: Path, actor: ActorConfig, threads: int) -> EngineSettings:
    return EngineSettings(os.path.abspath(folder), actor.dtype, 512, max_num_seqs=8, kv_cache_gb=0.1, threads=threads)


def _pool(folder: Path, actor: ActorConfig, threads: int) -> EnginePool:
    """One engine in Ray, with half of the threads: it works while this process sends."""
    settings = _settings(folder, actor, max(1, threads // 2))
    return EnginePool(1, settings, timeout_s=_TIMEOUT_S, on_event=logging.getLogger(__name__).warning)


def _lane(bucket_mb: int, transport: TransportName, address: str) -> Lane:
    return Lane(Transports(transport, address, bucket_mb * 2**20, _TIMEOUT_S))


def _reader() -> Connection:
    """A process that reads every source it is sent, drops the tensors and answers with its peak memory."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    context.Process(target=_read, args=(its,), daemon=True).start()
    ours.recv()
    return ours


def _read(connection: Connection) -> None:
    torch.set_num_threads(1)
    connection.send("here")
    while True:
        source: WeightSource
        source, measured = connection.recv()
        take = partial(_take, source)
        connection.send(with_peak_memory(take)[1] if measured else take())


def _take(source: WeightSource) -> None:
    _use_up(source.receive(0))


def _send(
    transport: WeightTransport, exporter: WeightExporter, reader: Connection, measured: bool = False
) -> int | None:
    """Stream to the reader; returns its peak memory in bytes if that is to be measured, which takes time of its own."""
    with transport.sender(["reader"]) as sender:
        reader.send((sender.source(0), measured))
        lost = sender.send(exporter, lambda: ())
        if lost:
            raise WeightTransportError(lost[0])
    found: int | None = reader.recv()
    return found
