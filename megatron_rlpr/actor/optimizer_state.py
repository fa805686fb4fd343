"""The optimizer's part of a checkpoint: the same whether experts are spread over ranks or not.

Megatron gives spread experts (expert parallelism above 1, or cut by other ranks than the layers) an optimizer of their
own. Its tensors are named after the parameters in either case, so they load wherever the parameter went; what is
missing when a checkpoint was written without that second optimizer is its bookkeeping, the same for both. Nor does it
matter whether the state was sharded over data-parallel ranks (`optimizer_shards`).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_rlpr.actor.optimizer_shards import sharded_shards, take_shards

_PARTS = ("optimizer", "expert_optimizer")


def optimizer_parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizer of what all data-parallel ranks hold and, with spread experts, theirs."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def sharded_optimizer_state(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], is_loading: bool
) -> dict[str, Any]:
    """Entries of a checkpoint. model_state: the sharded state of its chunks."""

    def entries(part: MegatronOptimizer) -> dict[str, Any]:
        if isinstance(part, DistributedOptimizer):
            return sharded_shards(part, model_state, is_loading)
        state: dict[str, Any] = part.sharded_state_dict(model_state, is_loading=is_loading)
        return state

    return {name: entries(part) for name, part in zip(_PARTS, optimizer_parts(optimizer), strict=False)}


def load_optimizer_state(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Take over the entries of a checkpoint that was loaded with `sharded_optimizer_state(..., is_loading=True)`."""
    parts = dict(zip(_PARTS, optimizer_parts(optimizer), strict=False))
    for name, part in parts.items():
        _lift(loaded[name])
        _complete(_adam(loaded[name]), _adam(loaded[_PARTS[0]]), _adam(part.state_dict()))
    for name, part in parts.items():
        fresh = _adam(part.state_dict())["param_groups"][0]
        for group in _adam(loaded[name])["param_groups"]:
            # Megatron tells groups apart by these, too; the rate of every step is set by the trainer.
            group.update({key: fresh[key] for key in ("max_lr", "min_lr") if key in fresh})
        if isinstance(part, DistributedOptimizer):
            groups = [{"params": [], **group} for group in _adam(loaded[name])["param_groups"]]
            ours = part._filter_and_reorder_param_groups(part.optimizer.param_groups, groups)
            take_shards(part, loaded[name], ours, _steps(_adam(loaded[name])))
        else:
            _translate(_adam(loaded[name]), part.optimizer)
            part.load_state_dict(loaded[name])


def _lift(state: dict[str, Any]) -> None:
    """Give state, in place, one list of groups where two kinds of optimizer have theirs in different places."""
    if "param_groups" in state and "optimizer" in state:
        stored = state.pop("optimizer")["param_groups"]
        state["param_groups"] = [{**theirs, **ours} for ours, theirs in zip(state["param_groups"], stored, strict=True)]


def _steps(state: dict[str, Any]) -> int:
    """How many steps the stored optimizer had made."""
    return int(state.get("state", {}).get("common_step", state["param_groups"][0].get("step", 0)))


def _adam(state: dict[str, Any]) -> dict[str, Any]:
    """The innermost optimizer's state; mixed precision wraps it."""
    inner: dict[str, Any] = state.get("optimizer", state)
    return inner


def _translate(state: dict[str, Any], adam: torch.optim.Optimizer) -> None:
    """Give state, in place, the form of this Adam: PyTorch's and Transformer Engine's load each other's checkpoints.

    They have other options, and one counts the steps of every tensor, the other those of a group.
    """
    steps = _steps(state)
    for group in state["param_groups"]:
        for option, default in adam.defaults.items():
            group.setdefault(option, default)
        group.pop("step", None)
    state["state"].pop("common_step", None)
    if isinstance(adam, torch.optim.Adam):
        state["state"]["common_step"] = torch.tensor(float(steps))
    else:
        for group in state["param_groups"]:
            group["step"] = steps


def _complete(state: dict[str, Any], stored: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Give state, in place, the bookkeeping its checkpoint lacks: fresh hyperparameters, how many steps were stored."""
    groups = state.setdefault("param_groups", [{"params": []} for _ in fresh["param_groups"]])
    for group, new in zip(groups, fresh["param_groups"], strict=True):
        if group.keys() == {"params"}:
            group.update({**new, "params": group["params"]})
            state.setdefault("state", {}).setdefault("common_step", torch.tensor(float(_steps(stored))))
