"""Floating-point operations, bytes moved, pipeline bubble and seconds of every phase of a step.

    FLOPs      of the distinct tokens, query-key pairs and selected rows (`actor.costs`); backward takes twice a
               forward, full recompute one more, the head's logits are always computed again
    bubble     (PP - 1) / (VPP M + PP - 1) of the time, with M micro-batches of a data-parallel rank
    expected   the FLOPs at the rates that were measured, or what the host needs to launch them, whichever is longer;
               the bubble; and traffic, as if nothing of it were hidden
    at best    the FLOPs at the rate of large matrix products, and the bubble; of linear layers in FP8 at FP8's

Filtered rounds, data, grading and the file system are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from megatron_rlpr.actor.costs import cost_model
from tools.plan.gpus import DECODING, LAUNCH_SECONDS, LINKS, PRODUCTS, SCORE_EFFICIENCY, UPDATE_EFFICIENCY
from tools.plan.handover import received
from tools.plan.job import Job
from tools.plan.memory import (
    BF16,
    FP32,
    cache_bytes_per_token,
    checkpoint_bytes,
    checkpoint_share,
    engine_weight_bytes,
    state_bytes,
)
from tools.plan.parameters import of_model, of_stage

OPTIMIZER_BYTES = 30
"""Read and written by a step for a parameter: gradient, weight, master and two averages."""
REDUCE_SECONDS = 20e-6
"""Of the sum over an engine's ranks of one token's activations; not measured."""


@dataclass(frozen=True)
class Phase:
    """flops: of one GPU. moved: bytes between GPUs, received by one. bubble: share of its time that a stage waits."""

    flops: float = 0
    moved: float = 0
    bubble: float = 0
    expected: float = 0
    at_best: float = 0


@dataclass(frozen=True)
class _Work:
    """Of all GPUs: distinct tokens, query-key pairs and selected rows."""

    tokens: float
    pairs: float
    rows: float


def phases(job: Job, cache_tokens: float) -> dict[str, Phase]:
    """By name, as in `memory`. cache_tokens: tokens that an engine's cache holds."""
    return {
        "hand-over": _hand_over(job),
        "generate": _generate(job, cache_tokens),
        "score": _score(job),
        "update": _update(job),
        "checkpoint": _checkpoint(job),
    }


def step_seconds(job: Job, found: dict[str, Phase]) -> float:
    """Expected of a step, with its part of the checkpoints."""
    every = job.config.trainer.save_freq
    rest = found["checkpoint"].expected / every if every > 0 else 0
    return sum(phase.expected for name, phase in found.items() if name != "checkpoint") + rest


def micro_batches(job: Job, tokens: float) -> int:
    """Of one data-parallel rank, for so many tokens of all."""
    count = ceil(tokens / job.data / job.actor.max_tokens_per_micro_batch)
    return max(count, job.stages if job.rounds > 1 else 1)


def bubble(job: Job, count: int) -> float:
    """Share of the time that a stage waits while count micro-batches pass."""
    return (job.stages - 1) / (job.rounds * count + job.stages - 1)


def _groups(job: Job, prompts: int, endings: int) -> _Work:
    """Groups of responses, each of which may have another ending behind it."""
    load, n = job.workload, job.config.rollout.n
    behind = load.reference * endings
    tokens = load.prompt + n * (load.response + behind)
    of_response = load.response * load.prompt + load.response**2 / 2 + behind * (load.prompt + load.response)
    pairs = load.prompt**2 / 2 + n * of_response
    if not job.actor.share_prefixes:
        tokens += (n - 1) * load.prompt + n * endings * (load.prompt + load.response)
        pairs += (n - 1) * load.prompt**2 / 2 + n * endings * (load.prompt + load.response) ** 2 / 2
    return _Work(prompts * tokens, prompts * pairs, prompts * n * (load.response + behind))


def _score(job: Job) -> Phase:
    config, load = job.config, job.workload
    prompts = config.data.train_batch_size
    work = _groups(job, prompts, endings=1)
    without = prompts * (load.prompt + load.reference) * config.tracking.reasoning_gain
    again = _groups(job, prompts, endings=0).tokens if config.algorithm.kl_loss_coef else 0
    work = _Work(work.tokens + without + again, work.pairs, work.rows + again)
    return _passes(job, work, "score", batches=1)


def _update(job: Job) -> Phase:
    prompts = job.config.data.train_batch_size
    mini = job.actor.ppo_mini_batch_size or prompts
    return _passes(job, _groups(job, prompts, endings=0), "update", batches=prompts // mini)


def _passes(job: Job, work: _Work, kind: str, batches: int) -> Phase:
    """Forward, and in an update backward, of work in so many batches that wait for each other."""
    cost, trains, gpu = cost_model(job.shape), kind == "update", job.gpu
    again = job.actor.recompute_granularity == "full"
    times = 3 + again if trains else 1
    linear = times * cost.linear_flops_per_token * work.tokens / job.gpus
    rest = (
        times * cost.attention_flops_per_pair * work.pairs + (4 if trains else 1) * cost.head_flops_per_row * work.rows
    )
    rest /= job.gpus
    count = micro_batches(job, work.tokens / batches)
    waits = bubble(job, count)
    layers = job.most_layers
    imbalance = layers * job.stages / job.shape.num_layers
    efficiency = UPDATE_EFFICIENCY if trains else SCORE_EFFICIENCY
    computing = imbalance * (linear + rest) / (gpu.bf16 * efficiency)
    launching = LAUNCH_SECONDS[kind, bool(job.actor.fp8)] * layers * count * batches
    fast = gpu.fp8 if job.actor.fp8 and (trains or job.actor.fp8_scoring == "fp8") else gpu.bf16
    at_best = imbalance * (linear / fast + rest / gpu.bf16) / PRODUCTS
    moved, traffic = _layer_traffic(job, work.tokens / job.data, layers, 2.5 + again if trains else 1)
    if trains:
        gradients, seconds = _optimizer_step(job)
        moved, traffic = moved + batches * gradients, traffic + batches * seconds
    expected = max(computing, launching) / (1 - waits) + traffic
    return Phase(linear + rest, moved, waits, expected, at_best / (1 - waits))


def _layer_traffic(job: Job, tokens: float, layers: int, passes: float) -> tuple[float, float]:
    """Bytes and seconds of what layers exchange for tokens of one data-parallel rank."""
    hidden = BF16 * tokens * job.shape.hidden_size
    tensor = 4 * layers * passes * hidden * (job.tensor - 1) / job.tensor
    seconds = tensor / (LINKS * job.bandwidth(job.tensor))
    stages = (min(passes, 2) * job.rounds * hidden / job.sequence) if job.stages > 1 else 0
    seconds += stages / (LINKS * job.bandwidth(job.gpus))
    experts, spread = job.shape.experts, job.actor.expert_model_parallel_size
    routed = 0.0
    if experts is not None and spread > 1:
        routed = 2 * layers * passes * hidden / job.sequence * experts.top_k * (spread - 1) / spread
        seconds += routed / (LINKS * job.bandwidth(spread * job.tensor))
    return tensor + stages + routed, seconds


def _optimizer_step(job: Job) -> tuple[float, float]:
    """Bytes and seconds of one: gradients are summed over data-parallel ranks, weights come back."""
    stage = max(range(job.stages), key=lambda stage: of_stage(job, stage).total)
    held, shared = of_stage(job, stage), job.actor.use_distributed_optimizer
    others = (job.sharers - 1) / job.sharers
    # A sum that every rank keeps is a scattered sum and its gathering.
    moved = others * (FP32 + (state_bytes(job, stage)["weights"] / held.total if shared else FP32)) * held.total
    stepped = held.dense / job.sharers + held.expert / job.expert_sharers if shared else held.total
    seconds = moved / (LINKS * job.bandwidth(job.tensor * job.sharers)) if job.sharers > 1 else 0.0
    return moved, seconds + OPTIMIZER_BYTES * stepped / (LINKS * job.gpu.hbm)


def _generate(job: Job, cache_tokens: float) -> Phase:
    """Decoding until the last response ends: the cache, max_num_seqs and the responses bound how many run at once."""
    config, load, gpu = job.config, job.workload, job.gpu
    tensor, n = config.rollout.tensor_parallel_size, config.rollout.n
    of_engine = config.data.train_batch_size * n / job.engines
    at_once = min(of_engine, config.rollout.max_num_seqs or 512, cache_tokens / (load.prompt / n + load.response))
    at_once = max(at_once, 1.0)
    steps = max(of_engine / at_once * load.response, float(config.data.max_response_length))
    busy = of_engine * load.response / steps  # responses that run in the mean step
    cost, shape = cost_model(job.shape), job.shape
    whole = of_model(shape)
    touched = min(1.0, busy * shape.experts.top_k / shape.experts.count) if shape.experts else 1.0
    read = engine_weight_bytes(job) * (whole.dense + touched * whole.expert) / whole.total
    read += busy * (load.prompt + load.response / 2) * cache_bytes_per_token(job)
    pairs = load.prompt + load.response / 2
    of_token = cost.flops(1, 1, 1) + (pairs - 1) * cost.attention_flops_per_pair
    decoding = busy * of_token / tensor
    reducing = 2 * shape.num_layers * REDUCE_SECONDS * (tensor > 1)
    step = max(read / (DECODING * gpu.hbm), decoding / (PRODUCTS * gpu.bf16)) + reducing
    prompts = of_engine / n * load.prompt * cost.linear_flops_per_token / tensor
    expected = steps * step + prompts / (SCORE_EFFICIENCY * gpu.bf16)
    at_best = steps * max(read / gpu.hbm, decoding / (PRODUCTS * gpu.bf16)) + prompts / (PRODUCTS * gpu.bf16)
    moved = 4 * shape.num_layers * BF16 * shape.hidden_size * of_engine * load.response * (tensor - 1) / tensor
    return Phase(steps * decoding + prompts, moved, 0, expected, at_best)


def _hand_over(job: Job) -> Phase:
    """What an export sends to the rank that gets most, within its stage and from others; sums of both sides."""
    found = received(job)
    gathered, experts, stages = (job.itemsize * part for part in (found.gathered, found.experts, found.stages))
    spread = job.actor.expert_model_parallel_size * job.actor.expert_tensor_size
    seconds = gathered / job.bandwidth(job.tensor) + experts / job.bandwidth(spread) + stages / job.bandwidth(job.gpus)
    restored = job.actor.offload != "none"
    copies = max(state_bytes(job, stage)["optimizer"] for stage in range(job.stages)) * 2 * restored
    expected = (seconds + copies / job.gpu.host) / LINKS
    return Phase(0, job.itemsize * found.total, 0, expected, seconds)


def _checkpoint(job: Job) -> Phase:
    """The copy to the host; files are written at the rate of the file system."""
    seconds = max(checkpoint_share(job, stage) for stage in range(job.stages)) / job.gpu.host
    return Phase(0, checkpoint_bytes(job) / job.gpus, 0, seconds / LINKS, seconds)
