"""`bench checkpoint`: what saving and loading a checkpoint adds to a rank's memory, for models and layouts of any size.

One rank of a fake process group builds the policy of fake tensors (no storage), then makes the entries of a checkpoint,
plans with ranks that are said to hold what ranks at their place hold, and copies its share to the host. Everything that
this project and Megatron allocate for it is counted; only the writing and reading of files, which keep one tensor at a
time, is left out. The device "meta" stands for the GPU.
"""

from __future__ import annotations

import contextlib
import pkgutil
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import checkpoint_entries
from megatron_rlpr.actor.checkpoint_share import CheckpointShare
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.load_megatron import chunks_by_key, weights_state

GPU, HOST = torch.device("meta"), torch.device("cpu")
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
        with _first_rank(case) as policy:
            point: dict[str, Any] = {
                "layout": case.name,
                "parameters": sum(p.numel() for chunk in policy.chunks for p in chunk.parameters()),
                "state_gb": _nbytes(checkpoint_entries(policy, is_loading=False)) / 1e9,
            }
            for name, work in _WORK.items():
                point |= {f"{name}_{where}_gb": value for where, value in _peaks(work, policy).items()}
            points.append(point)
    return {"points": points}


def _save(policy: MegatronPolicy) -> Any:
    with (
        TemporaryDirectory() as folder,
        _replaced("megatron_rlpr.actor.checkpoint_share.CheckpointShare.write", lambda _: None),
    ):
        return CheckpointShare(checkpoint_entries(policy, is_loading=False), Path(folder), in_background=True)


def _gathered_entries(policy: MegatronPolicy, is_loading: bool) -> dict[str, Any]:
    model: dict[str, Any] = {key: weights_state(chunk) for key, chunk in chunks_by_key(policy.chunks).items()}
    assert policy.optimizer is not None
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    (part,) = optimizer_parts(policy.optimizer)
    return {**model, "optimizer": part.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)}


def _gathered_save(policy: MegatronPolicy) -> Any:
    entries = _gathered_entries(policy, is_loading=False)
    with TemporaryDirectory() as folder:
        request = dist_checkpointing.save(entries, folder, async_sharded_save=True, async_strategy="mcore")
        return request.preload_fn()


_WORK: dict[str, Callable[[MegatronPolicy], Any]] = {
    "gathered_save": _gathered_save,
    "gathered_load": lambda policy: _gathered_entries(policy, is_loading=True),
    "ours_save": _save,
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


@contextlib.contextmanager
def _replaced(name: str, instead: Any) -> Iterator[None]:
    """Until the end, what goes by this full name is something else: no other rank answers, and nothing is written."""
    owner_name, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    kept = getattr(owner, attribute)
    setattr(owner, attribute, instead)
    try:
        yield
    finally:
        setattr(owner, attribute, kept)


@contextlib.contextmanager
def _first_rank(case: Case) -> Iterator[MegatronPolicy]:
    """The policy of the first rank, without storage; collectives do nothing."""
    actor = ActorConfig(
        dtype="bfloat16",
        use_distributed_optimizer=True,
        tensor_model_parallel_size=case.tensor,
        pipeline_model_parallel_size=case.pipeline,
    )
    new_group = dist.new_group

    def fake_group(ranks: Any = None, **_: Any) -> Any:
        return new_group(ranks, backend="fake")

    ranks = case.tensor * case.pipeline * case.data
    nothing = "megatron.core.dist_checkpointing.{}.validate_sharding_integrity"
    with contextlib.ExitStack() as stack:
        for name, instead in {
            "torch.distributed.new_group": fake_group,
            "torch.distributed.all_gather_object": _others_hold_the_same,
            "torch.distributed.gather_object": lambda obj, object_gather_list, **_: _others_hold_the_same(
                object_gather_list, obj
            ),
            "torch.distributed.all_gather": lambda *_, **__: None,
            "torch.nn.Module.bfloat16": lambda module: module,  # which it is, and fake weights cannot be exchanged
            "torch.distributed.checkpoint.default_planner._validate_global_plan": lambda *_: [],
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue": queue.Queue(),
            nothing.format("state_dict_utils"): lambda *_, **__: None,
            nothing.format("strategies.fully_parallel"): lambda *_, **__: None,
        }.items():
            stack.enter_context(_replaced(name, instead))
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        layout = parallel.initialize(actor, seed=1)
        stack.enter_context(_replaced("torch.cuda.current_device", lambda: GPU))
        named = torch.Tensor.type  # by which Megatron tells fp32 from bf16
        stack.enter_context(
            _replaced("torch.Tensor.type", lambda tensor: named(tensor).replace("torch.meta.", "torch.cuda."))
        )
        stack.enter_context(_replaced("torch.Tensor.cuda", lambda tensor: torch.empty_like(tensor, device=GPU)))
        with FakeTensorMode(allow_non_fake_inputs=True):
            with GPU:
                policy = MegatronPolicy(model_shape(case.config), actor, layout, temperature=1.0)
            assert policy.optimizer is not None
            for part in optimizer_parts(policy.optimizer):
                for state in part.optimizer.state.values():
                    state["step"] = torch.tensor(1.0)  # has a value, which the first step would give it
            yield policy
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _others_hold_the_same(gathered: list[Any] | None, mine: Any, group: Any = None, **_: Any) -> None:
    """What ranks of a data-parallel group would send: weights are shared, shards of the optimizer are their own."""
    if gathered is None:
        return
    for rank in range(len(gathered)):
        gathered[rank] = mine
        if rank and isinstance(mine, list):
            gathered[rank] = [
                entry if entry.has_regular_grid else replace(entry, key=f"{entry.key} of {rank}")
                for entry in mine
                if isinstance(entry, ShardedTensor)
            ]
