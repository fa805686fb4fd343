"""`bench checkpoint`: what saving and loading a checkpoint adds to a rank's memory, for models and layouts of any size.

The first rank (`tools.fake_ranks`) builds the policy, then makes the entries of a checkpoint, plans with ranks that are
said to hold what ranks at their place hold, and copies its share to the host. Everything that this project and Megatron
allocate for it is counted; only the writing and reading of files, which keep one tensor at a time, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed._tools.mem_tracker import MemTracker

from megatron_rlpr.actor.checkpoint import checkpoint_entries
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.load_megatron import chunks_by_key, weights_state
from megatron_rlpr.weights.plan_check import planned_quickly
from tools.fake_ranks import GPU, HOST, policy_of_rank, share_of_checkpoint

_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}


@dataclass(frozen=True)
class Case:
    """A model and a layout. config: what its config.json says."""

    name: str
    config: dict[str, Any]
    tensor: int
    pipeline: int
    data: int


CASES = (
    Case(
        "Qwen2.5-7B, TP2 DP4",
        _QWEN2
        | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
        | {"num_attention_heads": 28, "num_key_value_heads": 4},
        *(2, 1, 4),
    ),
    Case(
        "Qwen2.5-72B, TP8 PP8 DP8",
        _QWEN2
        | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80}
        | {"num_attention_heads": 64, "num_key_value_heads": 8},
        *(8, 8, 8),
    ),
)


def run(cases: tuple[Case, ...] = CASES) -> dict[str, Any]:
    """GB that are allocated at the worst on the GPU and the host of the first rank, beyond the policy itself.

    gathered: Megatron's fully_reshardable optimizer state, one writer for each model-parallel place. ours: boxes of
    shards, written and read by all data-parallel ranks. parameters: of the rank. state_gb: its weights and its shard
    of the optimizer.
    """
    points = []
    for case in cases:
        actor = ActorConfig(
            dtype="bfloat16",
            use_distributed_optimizer=True,
            tensor_model_parallel_size=case.tensor,
            pipeline_model_parallel_size=case.pipeline,
        )
        ranks = case.tensor * case.pipeline * case.data
        with policy_of_rank(model_shape(case.config), actor, ranks) as policy:
            point: dict[str, Any] = {
                "layout": case.name,
                "parameters": sum(p.numel() for chunk in policy.chunks for p in chunk.parameters()),
                "state_gb": _nbytes(checkpoint_entries(policy, is_loading=False)) / 1e9,
            }
            for name, work in _WORK.items():
                point |= {f"{name}_{where}_gb": value for where, value in _peaks(work, policy).items()}
            points.append(point)
    return {"points": points}


def _gathered_entries(policy: MegatronPolicy, is_loading: bool) -> dict[str, Any]:
    model: dict[str, Any] = {key: weights_state(chunk) for key, chunk in chunks_by_key(policy.chunks).items()}
    assert policy.optimizer is not None
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    (part,) = optimizer_parts(policy.optimizer)
    return {**model, "optimizer": part.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)}


def _gathered_save(policy: MegatronPolicy) -> Any:
    entries = _gathered_entries(policy, is_loading=False)
    with TemporaryDirectory() as folder, planned_quickly():
        request = dist_checkpointing.save(entries, folder, async_sharded_save=True, async_strategy="mcore")
        return request.preload_fn()


_WORK: dict[str, Callable[[MegatronPolicy], Any]] = {
    "gathered_save": _gathered_save,
    "gathered_load": lambda policy: _gathered_entries(policy, is_loading=True),
    "ours_save": share_of_checkpoint,
    "ours_load": lambda policy: checkpoint_entries(policy, is_loading=True),
}


def _peaks(work: Callable[[MegatronPolicy], Any], policy: MegatronPolicy) -> dict[str, float]:
    """GB that work allocates at its worst, by where."""
    tracker = MemTracker()
    tracker.track_external(*_held(policy))
    before = tracker.get_tracker_snapshot("current")
    with tracker:
        kept = work(policy)
    del kept
    peak = tracker.get_tracker_snapshot("peak")

    def more(device: torch.device) -> float:
        held = before.get(device, {}).get("Total", 0)
        return float(max(peak.get(device, {}).get("Total", 0) - held, 0)) / 1e9

    return {"gpu": more(GPU), "host": more(HOST)}


def _held(policy: MegatronPolicy) -> list[torch.Tensor]:
    """All that the policy consists of."""
    assert policy.optimizer is not None
    held = [parameter.data for chunk in policy.chunks for parameter in chunk.parameters()]
    for part in optimizer_parts(policy.optimizer):
        held += [parameter.data for group in part.optimizer.param_groups for parameter in group["params"]]
        held += [tensor for state in part.optimizer.state.values() for tensor in state.values()]
    return held


def _nbytes(entries: dict[str, Any]) -> int:
    tensors = [e for e in nested_values(entries) if isinstance(e, ShardedTensor | ShardedTensorFactory)]
    return sum(entry.data.nbytes for entry in tensors)
