"""Scores, updates and checkpoints of small policies under several layouts (see actor_layouts.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layout_cases import SAVED_AFTER, TEMPERATURE, UPDATES, Case, requests
from megatron.core import parallel_state
from safetensors.torch import save_file

from checkpoint_conversion.verify import worst_tensor
from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import ScoreRequest, TrainSequence, UpdateResult
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights, open_hf_weights
from megatron_rlpr.weights.shape import ModelShape

TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.01, kl_coef=0.0, kl_type="low_var_kl")


def training_sequences(wanted: list[ScoreRequest], policy: MegatronPolicy) -> list[TrainSequence]:
    """The responses, with old log-probs a little away from the policy's and a random advantage each."""
    generator = np.random.default_rng(1)
    return [
        TrainSequence(
            request.token_ids,
            request.start,
            request.stop,
            (scores.log_probs + generator.normal(0, 0.1, len(scores.log_probs))).astype(np.float32),
            np.full(len(scores.log_probs), generator.normal(), dtype=np.float32),
        )
        for request, scores in zip(wanted[::2], policy.score(wanted)[::2], strict=True)
    ]


def update(policy: MegatronPolicy, sequences: list[TrainSequence]) -> UpdateResult:
    total = sum(s.stop - s.start for s in sequences)
    return policy.update(sequences, [1 / total] * len(sequences), TERMS, lr=3e-4)


def observe(case: Case, name: str, folder: Path, work: Path, layout: Layout) -> dict[str, Any]:
    """Everything about one model in this layout."""
    # With a larger epsilon than usual, gradients that are zero but for rounding do not move weights at random.
    settings = {"dtype": "float32", "max_tokens_per_micro_batch": 160, "head_chunk_rows": 7, "adam_eps": 1e-6}
    actor = ActorConfig(**{**settings, **case.actor})
    shape = model_shape(HfFolder(folder).config())
    policy = MegatronPolicy(shape, actor, layout, TEMPERATURE)
    load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    loaded = WeightExporter(policy.chunks, shape, bucket_mb=0.02)
    export_difference = worst_tensor(loaded, open_hf_weights(shape, folder)).difference
    wanted = requests(shape.vocab_size)
    pieces: list[tuple[int, int]] = []
    scores = policy.score(wanted, lambda *piece: pieces.append(piece))
    sequences = training_sequences(wanted, policy)
    updates = []
    for number in range(1, UPDATES + 1):
        updates.append(update(policy, sequences))
        if number == SAVED_AFTER:
            store(work, folder, name, shape).save(number, policy, {"step": number})
    after = policy.score(wanted)
    weights = {key: weight.clone() for key, weight in WeightExporter(policy.chunks, shape, bucket_mb=0.02)}
    exported = work / f"{name}, {folder.name}.safetensors"
    if layout.rank == 0:
        save_file(weights, exported)
    return {
        "export_difference": export_difference,
        "log_probs": [s.log_probs.tolist() for s in scores],
        "entropies": [s.entropies.tolist() for s in scores],
        "pieces": pieces,
        "one_request": policy_alone_on_one_request(policy, wanted),
        **series(updates),
        "processes_left_by_saving": len(psutil.Process().children(recursive=True)),
        "after": [s.log_probs.tolist() for s in after],
        "weights": str(exported),
        "one_sequence": series([update(policy, sequences[:1])]),
        "resumed": series(resumed(shape, actor, layout, store(work, folder, case.goes_on_from, shape), sequences)),
    }


def policy_alone_on_one_request(policy: MegatronPolicy, wanted: list[ScoreRequest]) -> float:
    """How far the scores of a single request are from those it gets among all: one rank of two then has nothing of its
    own."""
    alone, among_all = policy.score(wanted[:1])[0], policy.score(wanted)[0]
    return float(np.abs(alone.log_probs - among_all.log_probs).max())


def store(work: Path, folder: Path, name: str, shape: ModelShape) -> CheckpointStore:
    return CheckpointStore(work / folder.name / name, shape, keep_last=1)


def resumed(
    shape: ModelShape, actor: ActorConfig, layout: Layout, checkpoints: CheckpointStore, sequences: list[TrainSequence]
) -> list[UpdateResult]:
    """The updates after the checkpoint, by a policy that starts from other weights and has an optimizer of its own."""
    policy = MegatronPolicy(shape, actor, layout, TEMPERATURE)
    checkpoints.load(SAVED_AFTER, policy)
    return [update(policy, sequences) for _ in range(UPDATES - SAVED_AFTER)]


def series(updates: list[UpdateResult]) -> dict[str, list[float]]:
    return {
        part: [float(getattr(u, part)) for u in updates]
        for part in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_to_old")
    }


def one_rank(rank: int, name: str, case: Case, models: Path, work: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(work / f"{name}.store"), case.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
    layout = parallel.initialize(ActorConfig(**case.actor), seed=1)
    observed = [folder for folder in sorted(models.iterdir()) if not case.models or folder.name in case.models]
    facts = {folder.name: observe(case, name, folder, work, layout) for folder in observed}
    if rank == 0:
        (work / f"{name}.json").write_text(json.dumps(facts))
    dist.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def report(models: Path, work: Path, cases: dict[str, Case]) -> None:
    """All cases, one after the other."""
    torch.set_num_threads(1)
    work.mkdir(exist_ok=True)
    for name, case in cases.items():
        mp.start_processes(one_rank, (name, case, models, work), nprocs=case.ranks, start_method="fork")


def found(work: Path, cases: dict[str, Case]) -> dict[str, Any]:
    """{layout: {model: what the first rank saw}}, as `report` left it."""
    return {name: json.loads((work / f"{name}.json").read_text()) for name in cases}
