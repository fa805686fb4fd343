"""Bytes of every term on a GPU in every phase, and the largest token budget that fits.

Phases and what lies where in them: docs/memory.md. A token's activations in a layer, in elements: the inputs and
outputs of both norms (hidden size each, over the ranks of sequence parallelism); queries, keys, values and what
attention makes of them; gate, up and their product (over the tensor-parallel ranks). The first stage waits longest for
the backward of its micro-batches and holds the most of them. Every micro-batch is taken to be full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.plan.gpus import ATTENTION_BYTES, CONTEXT, ENGINE_WORKSPACE, GIB, USABLE
from tools.plan.handover import largest_parameter, sending_ranks
from tools.plan.job import Job
from tools.plan.parameters import of_engine_rank, of_model, of_stage

PHASES = ("hand-over", "generate", "score", "update", "checkpoint")
Terms = dict[str, float]
"""Bytes by name."""
BF16, FP32 = 2, 4
_STORED = 14.0
"""Bytes of a parameter in a checkpoint (docs/checkpoints.md)."""
SMALLEST_STEP = 256
"""Token budgets are multiples of it."""


@dataclass(frozen=True)
class Memory:
    """phases: the terms of the stage that is fullest in each; host: pinned or copied by one rank; tokens of cache."""

    phases: dict[str, Terms]
    host: Terms
    cache_tokens: float

    @property
    def peak(self) -> tuple[str, float]:
        """The fullest phase, and its bytes."""
        return max(((phase, sum(terms.values())) for phase, terms in self.phases.items()), key=lambda found: found[1])

    def faults(self, job: Job) -> Iterator[str]:
        """One sentence for each phase that does not fit, which names its largest term."""
        limit = USABLE * job.gpu.memory
        for phase, terms in self.phases.items():
            if (total := sum(terms.values())) > limit:
                largest = max(terms, key=terms.__getitem__)
                yield (
                    f"{phase} needs {total / GIB:.1f} GiB of a GPU's {limit / GIB:.1f} (largest term: {largest}, "
                    f"{terms[largest] / GIB:.1f} GiB)"
                )
        longest = job.config.data.longest_prompt + job.config.data.max_response_length
        if self.cache_tokens < longest:
            yield (
                f"the engine's cache holds {max(self.cache_tokens, 0):.0f} tokens, and one sequence may have {longest} "
                f"(largest term: engine weights, {self.phases['generate']['engine weights'] / GIB:.1f} GiB)"
            )


def memory(job: Job) -> Memory:
    """Of the fullest stage in every phase."""
    by_stage = [_stage(job, stage) for stage in range(job.stages)]
    fullest = {
        phase: max((found[phase] for found in by_stage), key=lambda terms: sum(terms.values())) for phase in PHASES
    }
    states = [state_bytes(job, stage) for stage in range(job.stages)]
    moved, delta = job.actor.offload != "none", job.config.weights.delta
    host = {
        "optimizer while engines generate": max(s["optimizer"] for s in states) if moved else 0,
        "weights while engines generate": max(s["weights"] for s in states) if job.actor.offload == "all" else 0,
        "reference policy": max(s["weights"] for s in states) if moved and job.config.algorithm.kl_loss_coef else 0,
        "checkpoint": max(checkpoint_share(job, stage) for stage in range(job.stages)),
        "last hand-over": job.itemsize * of_model(job.shape).total / sending_ranks(job) if delta else 0,
    }
    return Memory(fullest, host, _cache_bytes(job) / cache_bytes_per_token(job))


def state_bytes(job: Job, stage: int) -> Terms:
    """What a rank of a stage keeps while it trains."""
    held, actor = of_stage(job, stage), job.actor
    size = job.itemsize
    narrow = {"float32": FP32, "bfloat16": BF16}
    moments = narrow[actor.exp_avg_dtype] + narrow[actor.exp_avg_sq_dtype]
    of_weight = moments + (FP32 if size == BF16 else 0)
    shared = actor.use_distributed_optimizer
    sharers = (job.sharers, job.expert_sharers) if shared else (1, 1)
    # Stored in FP8, weights are two arrays, one for either side of a product, and their scales.
    in_fp8 = held.linear if actor.fp8_param else 0
    return {
        "weights": float(size * (held.total - in_fp8) + 2 * in_fp8),
        "gradients": float(FP32 * held.total),
        "optimizer": of_weight * (held.dense / sharers[0] + held.expert / sharers[1]),
    }


def largest_budget(job: Job) -> int:
    """The largest actor.max_tokens_per_micro_batch that fits; 0: none."""
    low, high = 0, 2**20 // SMALLEST_STEP
    while low < high:
        middle = (low + high + 1) // 2
        fits = not list(memory(job.changed({_BUDGET: middle * SMALLEST_STEP})).faults(job))
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * SMALLEST_STEP


_BUDGET = "actor.max_tokens_per_micro_batch"


def cache_bytes_per_token(job: Job) -> float:
    """Of one rank of an engine."""
    shape, rollout = job.shape, job.config.rollout
    heads = max(1, shape.num_query_groups / rollout.tensor_parallel_size)
    return 2 * shape.num_layers * heads * shape.head_dim * (1 if rollout.kv_cache_dtype == "fp8" else BF16)


def engine_weight_bytes(job: Job) -> float:
    """Of one rank of an engine."""
    size = 1 if job.config.rollout.quantization == "fp8" else BF16
    return size * of_engine_rank(job)


def _cache_bytes(job: Job) -> float:
    return job.config.rollout.memory_share(on_gpu=True) * job.gpu.memory - engine_weight_bytes(job) - ENGINE_WORKSPACE


def _stage(job: Job, stage: int) -> dict[str, Terms]:
    held, state, tokens = of_stage(job, stage), state_bytes(job, stage), _tokens(job)
    colocated = job.config.rollout.placement == "colocated"
    moved, both_moved = job.actor.offload != "none", job.actor.offload == "all"
    reference = state["weights"] if job.config.algorithm.kl_loss_coef else 0
    context = {"context, NCCL": float(CONTEXT)}
    weights = {"weights": state["weights"], "reference policy": 0 if moved else reference}
    training = {"gradients": state["gradients"], "optimizer": state["optimizer"]}
    kept = {} if moved else training  # while engines generate
    asleep = {"engine": ENGINE_WORKSPACE / 3}
    loaded = {"engine weights": engine_weight_bytes(job), "engine": float(ENGINE_WORKSPACE)}
    awake = loaded | {"KV cache": max(_cache_bytes(job), 0)}
    beside = awake if not job.sleeps else asleep
    if not colocated:
        loaded = awake = beside = {}
    away = {} if both_moved else weights
    bucket = max(job.config.weights.bucket_mb * 2**20, job.itemsize * largest_parameter(job))
    # Of weights in bf16, for one side of a product in scoring, and for both in training.
    one_side = held.linear if job.actor.fp8 and not job.actor.fp8_param else 0
    last = stage == job.stages - 1
    return {
        "hand-over": context | away | kept | (loaded if job.sleeps else awake) | {"buckets": 2.0 * bucket},
        "generate": context | away | kept | awake,
        "score": context
        | weights
        | kept
        | awake
        | {"FP8 copies": float(one_side if job.actor.fp8_scoring == "fp8" else 0)}
        | {"activations": tokens * _working_bytes(job)}
        | ({"selected-row logits": _head_bytes(job, trains=False)} if last else {}),
        "update": context
        | weights
        | training
        | beside
        | {"FP8 copies": 2.0 * one_side}
        | {"activations": tokens * (_kept_bytes(job, stage) + 1.5 * _working_bytes(job))}
        | ({"selected-row logits": _head_bytes(job, trains=True)} if last else {}),
        "checkpoint": context | weights | training | beside,
    }


def _tokens(job: Job) -> float:
    """Of a micro-batch on one rank."""
    return job.actor.max_tokens_per_micro_batch / job.actor.context_parallel_size


def _layer_bytes(job: Job) -> float:
    """All activations of a token in a layer that its backward reads."""
    shape, experts, tensor = job.shape, job.shape.experts, job.tensor
    hidden = 4 * shape.hidden_size / job.sequence
    attention = 2 * (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim / tensor
    if experts is None:
        return job.itemsize * (hidden + attention + 3 * shape.ffn_hidden_size / tensor)
    # As many copies of every token as it has experts are sent and received.
    cut = job.actor.expert_tensor_size
    received = experts.top_k * cut / job.sequence
    routed = received * (2 * shape.hidden_size + 3 * experts.ffn_hidden_size / cut)
    return job.itemsize * (hidden + attention + routed)


def _working_bytes(job: Job) -> float:
    """What a layer needs for a token while it computes."""
    attention = ATTENTION_BYTES * job.shape.num_attention_heads * job.shape.head_dim / job.tensor
    return _layer_bytes(job) + attention


def _kept_bytes(job: Job, stage: int) -> float:
    """What a stage keeps for a token of one micro-batch until its backward, for all micro-batches that wait."""
    actor, layers = job.actor, sum(job.layers(stage)) / job.rounds
    every, inputs = _layer_bytes(job), job.itemsize * job.shape.hidden_size / job.sequence
    if actor.recompute_granularity == "none":  # attention keeps its parts of both levels of a prefix tree, too
        every += 2 * job.itemsize * job.shape.num_attention_heads * job.shape.head_dim / job.tensor
    if actor.recompute_granularity != "full":
        of_part = layers * every
    elif actor.recompute_method == "block":
        again = min(actor.recompute_num_layers, layers)
        of_part = again * inputs + (layers - again) * every
    else:
        of_part = layers / actor.recompute_num_layers * inputs + (actor.recompute_num_layers - 1) * every
    return of_part * waiting(job, stage)


def waiting(job: Job, stage: int) -> int:
    """How many parts a stage has computed forward before the first backward (Megatron's 1F1B, interleaved or not)."""
    if job.rounds == 1:
        return job.stages - stage
    return 2 * (job.stages - stage - 1) + (job.rounds - 1) * job.stages + 1


def _head_bytes(job: Job, trains: bool) -> float:
    """A tile of logits (as products, fp32, exponentials), states of the rows and, in training, gradients of both."""
    shape, rows = job.shape, job.actor.max_tokens_per_micro_batch
    vocabulary = shape.vocab_size / job.tensor
    tile = (job.itemsize + 2 * FP32) * job.actor.head_chunk_rows * vocabulary
    states = rows * shape.hidden_size * (job.itemsize + ((FP32 + job.itemsize) if trains else 0))
    return tile + states + (job.itemsize * vocabulary * shape.hidden_size if trains else 0)


def checkpoint_share(job: Job, stage: int) -> float:
    """What a rank writes of a checkpoint: of the bf16 weights and of what the optimizer keeps."""
    held = of_stage(job, stage)
    return _STORED * (held.dense / job.sharers + held.expert / job.expert_sharers)


def checkpoint_bytes(job: Job) -> float:
    """Of all its files."""
    return _STORED * of_model(job.shape).total
