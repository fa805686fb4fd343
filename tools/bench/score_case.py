"""`bench score`: log-probs, entropies and reference probabilities of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.types import TokenScores
from tools.bench import baseline, policy
from tools.bench.measure import compare
from tools.bench.workload import BenchGroup

Report = dict[str, Any]


def run(folder: Path, groups: Sequence[BenchGroup], actor: ActorConfig, repetitions: int) -> Report:
    """Score all groups with both sides in every repetition and compare times, memory and numbers.

    The baseline takes one group at a time, because of its memory; we get all of them in one call, as in training, and
    make micro-batches of max_tokens. In bf16 both sides are also compared with fp32 log-probs of the first response and
    reference, because the baseline's own rounding is larger than any difference of method.
    """
    dtype = DTYPES[actor.dtype]
    plain = baseline.load(folder, dtype)
    built = policy.load(folder, actor, trainable=False)
    requests = [request for group in groups for request in (*group.responses, *group.spliced)]
    small = BenchGroup(
        groups[0].prompt[:8], (groups[0].reasonings[0][:8],) * 2, groups[0].answers[:1] * 2, groups[0].reference
    )
    baseline.score(plain, small)
    built.policy.score([*small.responses, *small.spliced])
    measured = compare(
        lambda _: [baseline.score(plain, group) for group in groups],
        lambda _: built.policy.score(requests),
        repetitions,
        dtype,
    )
    theirs, ours = measured.baseline.results[0], by_group(groups, measured.ours.results[0])
    log_prob_differences, entropy_differences = zip(*map(differences, theirs, ours), strict=True)
    tokens, linear, attention = built.work(requests)
    report = {
        "speedup": measured.speedup,
        "speedup_cpu_time": measured.cpu_speedup,
        "max_abs_diff": max(log_prob_differences),
        "max_abs_diff_entropy": max(entropy_differences),
        "tokens_baseline": sum(rows.tokens for group in theirs for rows in group),
        "tokens_ours": tokens,
        "peak_memory_ratio": measured.memory_ratio,
        "peak_memory_baseline": measured.baseline.peak_memory,
        "peak_memory_ours": measured.ours.peak_memory,
        "floor_fraction": measured.floor_fraction([linear] * repetitions),
        "floor_fraction_with_attention": measured.floor_fraction([linear + attention] * repetitions),
        "matmul_flops_per_second": float(np.median(measured.rates)),
        "seconds_baseline": measured.baseline.median_seconds,
        "seconds_ours": measured.ours.median_seconds,
    }
    if dtype != torch.float32:
        report |= _against_fp32(folder, groups[0], theirs[0], ours[0])
    return report


def by_group(groups: Sequence[BenchGroup], scores: Sequence[TokenScores]) -> list[Sequence[TokenScores]]:
    """Our results, the responses' and then the references' of every group."""
    first = np.concatenate([[0], np.cumsum([len(group.responses) + len(group.spliced) for group in groups])])
    return [scores[a:b] for a, b in pairwise(first)]


def differences(plain: tuple[baseline.Rows, baseline.Rows], ours: Sequence[TokenScores]) -> tuple[float, float]:
    """Largest absolute difference of (log-probs, entropies) of one group; the references' entropies are not there."""
    own, spliced = plain
    log_probs = [*own.log_probs, *spliced.log_probs]
    assert own.entropies is not None
    return (
        max(float(np.abs(a.numpy() - b.log_probs).max()) for a, b in zip(log_probs, ours, strict=True)),
        max(float(np.abs(a.numpy() - b.entropies).max()) for a, b in zip(own.entropies, ours, strict=False)),
    )


def _against_fp32(
    folder: Path, group: BenchGroup, plain: tuple[baseline.Rows, baseline.Rows], ours: Sequence[TokenScores]
) -> Report:
    """Mean absolute error of both sides' log-probs of the group's first response and reference."""
    first = BenchGroup(group.prompt, group.reasonings[:1], group.answers[:1], group.reference)
    own, spliced = baseline.score(baseline.load(folder, torch.float32), first)
    exact = np.concatenate([own.log_probs[0].numpy(), spliced.log_probs[0].numpy()])
    theirs = np.concatenate([rows.log_probs[0].numpy() for rows in plain])
    mine = np.concatenate([ours[0].log_probs, ours[len(group.reasonings)].log_probs])
    return {
        "mean_abs_error_baseline": float(np.abs(theirs - exact).mean()),
        "mean_abs_error_ours": float(np.abs(mine - exact).mean()),
    }
