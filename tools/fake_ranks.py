"""One rank of a world of any size, in one process and without storage.

The process group is PyTorch's fake one, in which collectives do nothing, and tensors are fake ones, which have sizes
and no memory. What other ranks would answer is put together from what this one has: ranks at its place hold the same.
The device "meta" stands for the GPU. So the real policy of 72e9 weights is built, and its checkpoint planned, anywhere.
"""

from __future__ import annotations

import contextlib
import pkgutil
import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.transformer.transformer_config import TransformerConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import SavePlan
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import checkpoint_entries
from megatron_rlpr.actor.checkpoint_share import CheckpointShare
from megatron_rlpr.actor.model.layer_kind import transformer_engine_is_here
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.weights.shape import ModelShape

GPU, HOST = torch.device("meta"), torch.device("cpu")


@contextlib.contextmanager
def replaced(name: str, instead: Any) -> Iterator[None]:
    """Until the end, what goes by this full name is something else: no other rank answers, and nothing is written."""
    owner_name, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    kept = getattr(owner, attribute)
    setattr(owner, attribute, instead)
    try:
        yield
    finally:
        setattr(owner, attribute, kept)


def share_of_checkpoint(policy: MegatronPolicy) -> CheckpointShare:
    """This rank's part of a checkpoint, planned and copied to the host; no file is written."""
    with (
        TemporaryDirectory() as folder,
        replaced("megatron_rlpr.actor.checkpoint_share.CheckpointShare.write", lambda _: None),
    ):
        return CheckpointShare(checkpoint_entries(policy, is_loading=False), Path(folder), in_background=True)


@contextlib.contextmanager
def policy_of_rank(shape: ModelShape, actor: ActorConfig, world_size: int, rank: int = 0) -> Iterator[MegatronPolicy]:
    """The policy of one rank, without storage, inside the groups of its world; collectives do nothing."""
    new_group = dist.new_group

    def fake_group(ranks: Any = None, **_: Any) -> Any:
        return new_group(ranks, backend="fake")

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
            "megatron_rlpr.weights.plan_check.plan_errors": lambda *_: [],
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue": queue.Queue(),
            nothing.format("state_dict_utils"): lambda *_, **__: None,
            nothing.format("strategies.fully_parallel"): lambda *_, **__: None,
        }.items():
            stack.enter_context(replaced(name, instead))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        stack.callback(dist.destroy_process_group)
        stack.callback(parallel_state.destroy_model_parallel)
        layout = parallel.initialize(actor, seed=1)
        stack.enter_context(replaced("torch.cuda.current_device", lambda: GPU))
        named = torch.Tensor.type  # by which Megatron tells fp32 from bf16
        stack.enter_context(
            replaced("torch.Tensor.type", lambda tensor: named(tensor).replace("torch.meta.", "torch.cuda."))
        )
        stack.enter_context(replaced("torch.Tensor.cuda", lambda tensor: torch.empty_like(tensor, device=GPU)))
        if transformer_engine_is_here():
            configured = "megatron_rlpr.actor.model.tree_policy.transformer_config"
            stack.enter_context(replaced(configured, partial(_without_values, pkgutil.resolve_name(configured))))
        with FakeTensorMode(allow_non_fake_inputs=True):
            with GPU:
                policy = MegatronPolicy(shape, actor, layout, temperature=1.0)
            assert policy.optimizer is not None
            for part in optimizer_parts(policy.optimizer):
                for state in part.optimizer.state.values():
                    state["step"] = torch.tensor(1.0)  # has a value, which the first step would give it
            yield policy


def _without_values(make: Callable[..., TransformerConfig], *arguments: Any) -> TransformerConfig:
    """Transformer Engine makes parameters where it is told to, whatever PyTorch's default device is."""
    config = make(*arguments)
    config.use_cpu_initialization, config.init_model_with_meta_device = False, True
    config.perform_initialization = False
    return config


def _others_hold_the_same(gathered: list[Any] | None, mine: Any, group: Any = None, **_: Any) -> None:
    """What other ranks would send.

    Those of a data-parallel group have the same weights, and shards of the optimizer of their own. What the whole world
    has of a checkpoint is only looked at where all of it is there, so that nothing is made up for it.
    """
    if gathered is None:
        return
    gathered[:] = [mine] * len(gathered)
    if group in (None, dist.group.WORLD):
        if isinstance(mine, SavePlan):
            gathered[1:] = [replace(mine, items=[])] * (len(gathered) - 1)
    elif isinstance(mine, list):
        for rank in range(1, len(gathered)):
            gathered[rank] = [
                replace(entry, key=f"{entry.key} of {rank}") if _is_shard(entry) else entry
                for entry in mine
                if isinstance(entry, ShardedTensor)
            ]


def _is_shard(entry: ShardedTensor) -> bool:
    """Whether no other data-parallel rank has it: state of a distributed optimizer, which is cut anywhere."""
    return entry.key.startswith("optimizer.") and not entry.has_regular_grid
