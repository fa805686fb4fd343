"""One training step's numbers under their documented names (tracking/metric_names.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import TrainingBatch
from megatron_rlpr.reward.metrics import final_reward_distribution
from megatron_rlpr.tracking.memory import peak_device_gb, peak_resident_gb
from megatron_rlpr.types import ScoredGroup, UpdateResult

REWARD_PARTS = ("reference_probability", "base_probability", "format", "repetition", "accuracy", "splice_valid")


def step_metrics(
    fill: BatchFill,
    batch: TrainingBatch,
    updates: Sequence[UpdateResult],
    lr: float,
    seconds: Mapping[str, float],
    std_filter: StdFilter,
    cached_prompts: int,
) -> dict[str, float | None]:
    """What a step generated, kept, learnt and took. Collective. seconds: per phase."""
    groups, surplus = fill.take()
    return {
        **reward_metrics(groups or fill.history),
        **filter_metrics(std_filter, fill, batch, cached_prompts),
        **update_metrics(updates, lr),
        **speed_metrics(seconds, [*groups, *surplus, *fill.dropped], updates),
        **memory_metrics(),
    }


def reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards, lengths and engine agreement of the groups a step trained on."""
    rewards = [r for group in groups for r in group.rewards]
    responses = [r for group in groups for r in group.group.responses]
    if not rewards:
        return {}
    lengths = np.array([len(r.token_ids) for r in responses])
    prompt_lengths = [len(group.group.prompt.token_ids) for group in groups]

    def mean(part: str) -> float:
        return float(np.mean([getattr(r, part) for r in rewards]))

    return {
        "reward/mean": mean("reward"),
        "reward/std_per_group": float(
            np.mean([np.std(g.final_rewards, ddof=1) if len(g.rewards) > 1 else 0.0 for g in groups])
        ),
        **{f"reward/{part}": mean(part) for part in REWARD_PARTS},
        "response_length/mean": float(lengths.mean()),
        "response_length/max": int(lengths.max()),
        "response_length/min": int(lengths.min()),
        "response_length/truncated_fraction": float(np.mean([r.finish_reason == "length" for r in responses])),
        "prompt_length/mean": float(np.mean(prompt_lengths)),
        "prompt_length/max": int(max(prompt_lengths)),
        **final_reward_distribution(r.reward for r in rewards),
        **log_prob_gap(groups),
    }


def log_prob_gap(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """How far the engine's log-probs of its own tokens are from the actor's (the invariant "engine equals actor")."""
    gaps = [
        np.abs(np.asarray(response.engine_log_probs, dtype=np.float64) - scores.log_probs)
        for group in groups
        for response, scores in zip(group.group.responses, group.scores, strict=True)
        if len(response.engine_log_probs) == len(scores.log_probs) > 0
    ]
    if not gaps:
        return {}
    flat = np.concatenate(gaps)
    return {"rollout/log_prob_gap": float(flat.mean()), "rollout/log_prob_gap_max": float(flat.max())}


def filter_metrics(
    std_filter: StdFilter, fill: BatchFill, batch: TrainingBatch, cached: int
) -> dict[str, float | None]:
    """What the filter did in this step."""
    return {
        "filter/threshold": std_filter.threshold,
        "filter/kept_fraction": fill.kept_fraction,
        "filter/rounds": fill.rounds,
        "filter/cached_prompts": cached,
        "filter/flat_groups": batch.flat_share,
        **std_filter.round_metrics,
    }


def update_metrics(updates: Sequence[UpdateResult], lr: float) -> dict[str, float | None]:
    """The optimizer steps of one training step: means over them, weighted by their tokens where tokens are averaged.

    A step whose groups were all dropped trains on nothing: its values are None.
    """
    if not updates:
        nothing_trained = dict.fromkeys(("actor/loss", "actor/entropy", "actor/clip_fraction", "actor/grad_norm"))
        return {**nothing_trained, "actor/lr": lr, "actor/optimizer_steps": 0}
    tokens = np.array([u.trained_tokens for u in updates], dtype=np.float64)

    def token_mean(part: str) -> float:
        return float(np.average([getattr(u, part) for u in updates], weights=np.maximum(tokens, 1)))

    norms = np.array([u.grad_norm for u in updates])
    return {
        "actor/loss": float(np.mean([u.loss for u in updates])),
        "actor/entropy": token_mean("entropy"),
        "actor/clip_fraction": token_mean("clip_fraction"),
        "actor/ppo_kl": token_mean("kl_to_old"),
        "actor/grad_norm": float(norms.mean()),
        "actor/lr": lr,
        "actor/optimizer_steps": len(updates),
        "actor/skipped_steps": int((~np.isfinite(norms)).sum()),
        "actor/shared_token_fraction": 1.0
        - sum(u.computed_tokens for u in updates) / max(sum(u.sequence_tokens for u in updates), 1),
    }


def speed_metrics(
    seconds: Mapping[str, float], groups: Sequence[ScoredGroup], updates: Sequence[UpdateResult]
) -> dict[str, float]:
    """Seconds per phase and tokens a second. groups: everything the step generated, filtered groups included."""
    response_tokens = sum(len(r.token_ids) for g in groups for r in g.group.responses)
    prompt_tokens = sum(len(g.group.prompt.token_ids) * len(g.group.responses) for g in groups)
    rates = {"tokens/s": (prompt_tokens + response_tokens) / max(seconds.get("step", 0.0), 1e-9)}
    if seconds.get("rollout"):
        rates["tokens/s_rollout"] = response_tokens / seconds["rollout"]
    if seconds.get("update"):
        rates["tokens/s_update"] = sum(u.computed_tokens for u in updates) / seconds["update"]
    phases = ("rollout", "score", "reward", "update", "hand_over", "sleep", "offload", "restore", "step")
    wake = sum(seconds.get(name, 0.0) for name in ("wake_weights", "wake_cache"))
    return {**{f"time/{name}": seconds.get(name, 0.0) for name in phases}, "time/wake": wake, **rates}


def memory_metrics() -> dict[str, float]:
    """Peak memory of the first rank and of all ranks together. Collective."""
    return {
        "memory/peak_gb": peak_resident_gb(),
        "memory/peak_all_ranks_gb": peak_all_ranks_gb(),
        "memory/peak_device_gb": peak_device_gb(),
    }


def peak_all_ranks_gb() -> float:
    """Sum of the ranks' peaks: an upper bound of what the run needed, as shared pages count for each. Collective."""
    total = torch.tensor(peak_resident_gb(), dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total)
