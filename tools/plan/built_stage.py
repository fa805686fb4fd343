"""One rank's part of the real policy, without storage: what it holds, and what of it is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from megatron_rlpr.actor.checkpoint import checkpoint_entries
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.weights.local_parameters import local_parameters
from tools.fake_ranks import policy_of_rank, replaced, share_of_checkpoint
from tools.plan.job import Job


def build_stage(job: Job, stage: int) -> dict[str, Any]:
    """rank, parameters, bytes by kind; held: Hugging Face names of what each expert-parallel rank of its place has."""
    rank = job.tensor * (stage * job.sharers + stage % job.sharers) + stage % job.tensor
    with policy_of_rank(job.shape, job.actor, job.gpus, rank) as policy:
        faults = list(_checkpoint_faults(policy))
        if rank == 0:
            share_of_checkpoint(policy)
        try:
            held = _held(job, policy)
        except ValueError as error:
            held, faults = [set()], [*faults, str(error)]
        return {
            "rank": rank,
            "parameters": sum(weight.numel() for weight in _weights(policy)),
            "bytes": _bytes(policy),
            "held": held,
            "faults": faults,
        }


def _weights(policy: MegatronPolicy) -> Iterator[torch.nn.Parameter]:
    return chain.from_iterable(chunk.parameters() for chunk in policy.chunks)


def _bytes(policy: MegatronPolicy) -> dict[str, int]:
    assert policy.optimizer is not None
    weights = list(_weights(policy))
    states: list[torch.Tensor] = []
    for part in optimizer_parts(policy.optimizer):
        if any(weight.dtype == torch.bfloat16 for weight in weights):  # else the optimizer steps the weights themselves
            states += [master for group in part.optimizer.param_groups for master in group["params"]]
        for state in part.optimizer.state.values():
            states += [value for name, value in state.items() if name != "step"]
    return {
        "weights": sum(weight.nbytes for weight in weights),
        "gradients": sum(weight.main_grad.nbytes for weight in weights),
        "optimizer": sum(state.nbytes for state in states if isinstance(state, torch.Tensor)),
    }


def _held(job: Job, policy: MegatronPolicy) -> list[set[str]]:
    """By expert-parallel rank. Raises ValueError for a parameter without a place in the table, or of another shape."""
    found = []
    for expert_rank in range(job.actor.expert_model_parallel_size):
        with replaced("megatron.core.parallel_state.get_expert_model_parallel_rank", lambda number=expert_rank: number):
            mine = local_parameters(policy.chunks, job.shape)
        found.append({tensor.name for p in mine if not p.mapping.is_copy for tensor in p.mapping.hf})
    return found


def _checkpoint_faults(policy: MegatronPolicy) -> Iterator[str]:
    """What would be loaded and was not saved, or has another shape."""
    wanted = _outlines(checkpoint_entries(policy, is_loading=True))  # first: it makes what a first step would make
    saved = _outlines(checkpoint_entries(policy, is_loading=False))
    for key in sorted(saved.keys() | wanted.keys()):
        if saved.get(key) != wanted.get(key):
            yield f"a checkpoint holds {key} as {saved.get(key, 'nothing')}, and it is loaded as {wanted.get(key)}"


def _outlines(entries: dict[str, Any]) -> dict[str, set[tuple[Any, ...]]]:
    """Shapes, type and place of what is stored under each key."""
    found: dict[str, set[tuple[Any, ...]]] = {}
    for entry in nested_values(entries):
        parts = nested_values(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]
        for part in parts:
            if isinstance(part, ShardedTensor):
                outline = (part.global_shape, part.local_shape, part.global_offset, part.dtype)
                found.setdefault(part.key, set()).add(outline)
    return found
