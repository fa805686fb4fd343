"""`bench handover`: new weights for an engine in this process and for one in another, against a plain copy of the same bytes."""

from __future__ import annotations

import logging
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_rlpr.config import ActorConfig
from megatron_rlpr.rollout import ray_cluster
from megatron_rlpr.rollout.colocated import ColocatedRollouts
from megatron_rlpr.rollout.ray_actor import EngineSettings
from megatron_rlpr.rollout.ray_engine import EngineResources
from megatron_rlpr.rollout.ray_pool import EnginePool
from megatron_rlpr.rollout.ray_rollouts import RayRollouts
from megatron_rlpr.rollout.vllm_engine import VllmEngine
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.transports.choice import Transports
from tools.bench import policy
from tools.bench.measure import timed, with_peak_memory

_MODEL_LENGTH, _KV_CACHE_GB = 512, 0.1


def run(folder: Path, actor: ActorConfig, bucket_mb: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Times are medians over repetitions in which everything takes its turn; the first one is dropped.

    copy: every parameter into memory that is there already. export: the stream of Hugging Face tensors, used by nobody.
    checksum: what it adds on one side. in_process: a whole hand-over to a vLLM engine here, both sides' checksums included;
    other_process: the same through shared memory to one in a Ray actor. Memory: this process's peak beyond the start of each.
    """
    built = policy.load(folder, actor, trainable=False)
    exporter = WeightExporter(built.policy.model, built.shape, bucket_mb)
    parameters = [p.detach() for p in built.policy.model.parameters()]
    copies = [torch.empty_like(p) for p in parameters]
    here = HandOver(exporter, ColocatedRollouts(_engine(folder, actor)))
    there = HandOver(exporter, RayRollouts(lambda: _pool(folder, actor, bucket_mb, threads)))

    def copy() -> None:
        for target, source in zip(copies, parameters, strict=True):
            target.copy_(source)

    works = {
        "copy": copy,
        "export": lambda: _use_up(exporter.stream()),
        "export_with_checksum": lambda: _use_up(iter(ChecksummedStream(exporter.stream()))),
        "in_process": lambda: here.send(1),
        "other_process": lambda: there.send(1),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, int] = {}
    reports: dict[str, Any] = {}
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            if repetition == 0:
                reports[name], memory[name] = with_peak_memory(work)
            else:
                seconds[name].append(timed(work)[1])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    largest = max(sum(t.nbytes for _, t in bucket) for bucket in exporter.buckets())
    return {
        "nbytes": reports["in_process"].nbytes,
        "bucket_bytes": largest,
        "same_checksum": reports["in_process"].checksum == reports["other_process"].checksum,
        **{f"seconds_{name}": value for name, value in median.items()},
        "export_over_copy": median["export"] / median["copy"],
        "checksum_over_copy": (median["export_with_checksum"] - median["export"]) / median["copy"],
        "in_process_over_copy": median["in_process"] / median["copy"],
        "other_process_over_copy": median["other_process"] / median["copy"],
        **{f"peak_memory_{name}": value for name, value in memory.items() if name != "copy"},
        "export_memory_in_buckets": memory["export"] / largest,
        "in_process_memory_in_buckets": memory["in_process"] / largest,
    }


def _use_up(stream: Iterator[Any]) -> None:
    for _ in stream:
        continue


def _engine(folder: Path, actor: ActorConfig) -> VllmEngine:
    return VllmEngine(str(folder), dtype=policy.dtype_of(actor), max_model_len=_MODEL_LENGTH, max_num_seqs=8, kv_cache_gb=_KV_CACHE_GB)


def _pool(folder: Path, actor: ActorConfig, bucket_mb: int, threads: int) -> EnginePool:
    """One engine in a local Ray."""
    ray_cluster.connect("", cpus=threads)
    settings = EngineSettings(
        os.path.abspath(folder), actor.dtype, _MODEL_LENGTH, max_num_seqs=8, kv_cache_gb=_KV_CACHE_GB, threads=threads
    )
    resources = EngineResources(threads, 1 if torch.cuda.is_available() else 0)
    transports = Transports("auto", ray_cluster.node_address(), bucket_mb * 2**20, timeout_s=600)
    return EnginePool(1, settings, resources, timeout_s=600, transports=transports, on_event=logging.getLogger(__name__).warning)
