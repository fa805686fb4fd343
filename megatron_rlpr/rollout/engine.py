"""What the trainer and the rest of this room know about inference engines, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from megatron_rlpr.rollout.requests import RolloutRequest
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.types import RolloutGroup
from megatron_rlpr.weights.receiver import WeightReceiver

ProgressCallback = Callable[[int, int, int], None]
"""Called as (tokens generated so far, requests finished, requests in all) while an engine generates."""


class RolloutError(RuntimeError):
    """Generation failed; the message names the cause."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is made.

    model_path: the HF folder it starts from. dtype: a name of `system.dtypes`. max_model_len: most tokens of prompt and
    response together. max_num_seqs: sequences it decodes at once. kv_cache_gb: GiB of key/value cache on CPU; on GPU
    gpu_memory_utilization decides. quantization, kv_cache_dtype: as `rollout.quantization` and `rollout.kv_cache_dtype`
    mean. sleep: it gives its memory up between phases (`rollout.vllm.sleep`). load_format: dummy starts it with random
    weights, and it refuses to work before its first hand-over. data_parallel_size: engines that share their experts and
    step together, each with requests of its own; enable_expert_parallel: whole experts on each of their ranks. threads:
    intra-op threads of its process. raw_log_probs: its log-probs are of the
    model's own distribution, else of the one it sampled from; see `SamplingSettings.full_log_probs`.
    """

    model_path: str
    dtype: str
    max_model_len: int
    max_num_seqs: int = 64
    kv_cache_gb: float = 1.0
    gpu_memory_utilization: float = 0.4
    enforce_eager: bool = True
    tensor_parallel_size: int = 1
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    sleep: bool = False
    load_format: Literal["auto", "dummy"] = "auto"
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    seed: int = 0
    threads: int = 1
    raw_log_probs: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of that name."""
        return DTYPES[self.dtype]


class Rollouts(WeightReceiver, Protocol):
    """Where the trainer gets its rollouts from, on every rank: engines, or a store. Every method is collective."""

    @property
    def weight_version(self) -> int:
        """The hand-over that gave the engines their weights; 0 = the initial weights."""

    @property
    def engines_replaced(self) -> int:
        """Engines that died, hung or failed and were made anew so far; the first rank knows of all."""

    @property
    def device_in_use_gb(self) -> float:
        """Memory in use on this rank's GPU when its engine last fell asleep, in GB; 0 where none does."""

    @property
    def asleep(self) -> bool:
        """Whether the engines have given their memory up: the next hand-over wakes them."""

    def sleep(self) -> None:
        """Nothing will be generated before the next hand-over: engines that share the policy's GPUs give up theirs."""

    def generate(self, asked: RolloutRequest, on_progress: ProgressCallback | None = None) -> list[RolloutGroup]:
        """n responses for every prompt, in prompt order; the same on every rank."""
