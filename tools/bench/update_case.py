"""`bench update`: gradients of the policy loss of whole groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rlpr.actor.optimizer import apply_gradients
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.types import TrainSequence
from megatron_rlpr.weights.local_parameters import local_parameters
from tools.bench import baseline, policy
from tools.bench.measure import compare, timed
from tools.bench.workload import BenchGroup

Report = dict[str, Any]
Batch = tuple[BenchGroup, list[torch.Tensor], list[float]]
"""A group, log-probs of every response when it was sampled, and advantages."""

_FAR = 1e6
_POLICY_LOSS = LossTerms(
    clip_low=_FAR, clip_high=_FAR, dual_clip=0.0, entropy_coeff=0.0, kl_coef=0.0, kl_type="low_var_kl"
)
"""The plain policy gradient: nothing is clipped, so that one differing row cannot jump over a threshold."""


def run(folder: Path, groups: Sequence[BenchGroup], actor: ActorConfig, repetitions: int) -> Report:
    """Forward and backward of one group after the other, both sides: times, memory, gradients (of the last group).

    `gradient_relative_l2`: the difference from the baseline with its log-probs through logsumexp, which is not timed.

    The optimizer's step is the same work for both and left out of the comparison: `MegatronPolicy.update` makes one
    (with learning rate 0), it is timed alone as well (seconds_optimizer) and taken off. Megatron's fp32 gradient
    buffer, which exists before the step, counts as memory of the step, as the baseline's gradients do.
    """
    dtype = DTYPES[actor.dtype]
    plain = baseline.load(folder, dtype)
    built = policy.load(folder, actor, trainable=True)
    ours = built.policy
    assert ours.optimizer is not None
    batches: list[Batch] = [_training_data(ours, group, seed) for seed, group in enumerate(groups[: repetitions + 1])]

    def batch(repetition: int) -> Batch:
        return batches[repetition % len(batches)]

    def run_baseline(repetition: int) -> float:
        plain.zero_grad(set_to_none=True)
        return baseline.forward_backward(plain, *batch(repetition))

    def run_ours(repetition: int) -> Any:
        return ours.update(*_sequences(*batch(repetition)), _POLICY_LOSS, lr=0.0)

    first = groups[0]
    small = _training_data(ours, BenchGroup(first.prompt[:8], (first.reasonings[0][:8],), first.answers[:1], ()), 0)
    baseline.forward_backward(plain, *small)
    ours.update(*_sequences(*small), _POLICY_LOSS, lr=0.0)
    plain.zero_grad(set_to_none=True)
    measured = compare(run_baseline, run_ours, repetitions, dtype)
    assert ours.optimizer is not None
    optimizer_seconds = float(np.median([timed(lambda: apply_gradients(ours.optimizer))[1] for _ in range(3)]))
    measured.ours.seconds[:] = [seconds - optimizer_seconds for seconds in measured.ours.seconds]
    work = [built.work(group.responses) for group, _, _ in (batch(repetition) for repetition in range(repetitions + 1))]
    buffer = sum(p.main_grad.numel() * p.main_grad.element_size() for chunk in ours.chunks for p in chunk.parameters())
    measured.ours.peak_memory += buffer
    results = zip(measured.baseline.results, measured.ours.results, strict=True)
    report = {
        "speedup": measured.speedup,
        "speedup_cpu_time": measured.cpu_speedup,
        "max_abs_diff": max(abs(a - b.loss) for a, b in results),
        "tokens_baseline": sum(baseline.padded_tokens(batch(i)[0].responses) for i in range(1, repetitions + 1)),
        "tokens_ours": sum(tokens for tokens, _, _ in work[1:]),
        "peak_memory_ratio": measured.memory_ratio,
        "peak_memory_baseline": measured.baseline.peak_memory,
        "peak_memory_ours": measured.ours.peak_memory,
        "gradient_buffer": buffer,
        "floor_fraction": measured.floor_fraction([3 * linear for _, linear, _ in work[1:]]),
        "floor_fraction_with_attention": measured.floor_fraction(
            [3 * (linear + attention) for _, linear, attention in work[1:]]
        ),
        "matmul_flops_per_second": float(np.median(measured.rates)),
        "seconds_baseline": measured.baseline.median_seconds,
        "seconds_ours": measured.ours.median_seconds,
        "seconds_optimizer": optimizer_seconds,
    }
    last = batch(repetitions)
    if dtype == torch.float32:
        report |= _whose_rounding(folder, plain, built, last)
    plain.zero_grad(set_to_none=True)
    baseline.forward_backward(plain, *last, through_logsumexp=True)
    return report | {"gradient_relative_l2": relative_l2(our_gradients(built), plain)}


def _whose_rounding(folder: Path, plain: torch.nn.Module, built: policy.BenchPolicy, batch: Batch) -> Report:
    """Differences from the baseline as it was timed, and both sides' relative L2 errors against float64 gradients.

    The model takes one response at a time, weighted by its share of the tokens, because of the memory.
    """
    group, old, advantages = batch
    lengths = [len(x) for x in old]
    exact = baseline.load(folder, torch.float64)
    for i, (length, advantage) in enumerate(zip(lengths, advantages, strict=True)):
        one = BenchGroup(group.prompt, group.reasonings[i : i + 1], group.answers[i : i + 1], group.reference)
        baseline.forward_backward(exact, one, old[i : i + 1], [advantage * length / sum(lengths)])
    return {
        "gradient_relative_l2_log_softmax": relative_l2(our_gradients(built), plain),
        "gradient_error_baseline": relative_l2(((name, p.grad) for name, p in plain.named_parameters()), exact),
        "gradient_error_ours": relative_l2(our_gradients(built), exact),
    }


def our_gradients(built: policy.BenchPolicy) -> Iterator[tuple[str, torch.Tensor]]:
    """All gradients in the checkpoint's names and shapes."""
    for parameter in local_parameters(built.policy.chunks, built.shape):
        if not parameter.mapping.is_copy:
            yield from zip(
                (t.name for t in parameter.mapping.hf), parameter.mapping.split(parameter.tensor.main_grad), strict=True
            )


def relative_l2(gradients: Iterable[tuple[str, Any]], reference: torch.nn.Module) -> float:
    """Relative L2 difference of these gradients from those of a transformers model.

    transformers gives the input embedding of the padding token no gradient, although the token also occurs in its own
    right (as the end of a response); that row is left out.
    """
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    padding = getattr(reference.get_input_embeddings(), "padding_idx", None)  # type: ignore[operator]
    difference = norm = 0.0
    for name, gradient in gradients:
        theirs = wanted[name]
        assert theirs is not None
        a, b = gradient.double(), theirs.to(gradient.device, torch.float64, copy=True)
        if "embed_tokens" in name and padding is not None:
            a[padding] = b[padding] = 0
        difference += float((a - b).square().sum())
        norm += float(b.square().sum())
    return (difference / norm) ** 0.5


def _training_data(policy: MegatronPolicy, group: BenchGroup, seed: int) -> Batch:
    """Log-probs at sampling time near the policy's own, and an advantage for every response."""
    generator = torch.Generator().manual_seed(seed)
    scores = policy.score(group.responses)
    old = [torch.from_numpy(s.log_probs) + 0.05 * torch.randn(len(s.log_probs), generator=generator) for s in scores]
    return group, old, torch.randn(len(scores), generator=generator).tolist()


def _sequences(
    group: BenchGroup, old: Sequence[torch.Tensor], advantages: Sequence[float]
) -> tuple[list[TrainSequence], list[float]]:
    requests = group.responses
    total = sum(r.stop - r.start for r in requests)
    sequences = [
        TrainSequence(r.token_ids, r.start, r.stop, o.numpy(), np.full(len(o), a, dtype=np.float32))
        for r, o, a in zip(requests, old, advantages, strict=True)
    ]
    return sequences, [1 / total] * len(sequences)
