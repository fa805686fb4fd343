"""The optimizer's part of a checkpoint: the same whether experts are spread over ranks or not.

Megatron gives spread experts (expert parallelism above 1, or cut by other ranks than the layers) an optimizer of their
own. Its tensors are named after the
parameters in either case, so they load wherever the parameter went; what is missing when a checkpoint was written
without that second optimizer is its bookkeeping, the same for both.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_rlpr.types import UserError

_PARTS = ("optimizer", "expert_optimizer")


def optimizer_parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizer of what all data-parallel ranks hold and, with spread experts, theirs."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def sharded_optimizer_state(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], is_loading: bool, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Entries of a checkpoint. model_state: the sharded state of its chunks."""
    parts = zip(_PARTS, optimizer_parts(optimizer), strict=False)
    return {
        name: part.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata) for name, part in parts
    }


def load_optimizer_state(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Take over the entries of a checkpoint that was loaded with `sharded_optimizer_state(..., is_loading=True)`.

    Raises UserError for the state of a distributed optimizer that was written without spread experts, for spread ones.
    """
    parts = dict(zip(_PARTS, optimizer_parts(optimizer), strict=False))
    for name, part in parts.items():
        if "param_groups" not in _adam(loaded[name]):
            stored = "the checkpoint's distributed optimizer was stored with actor.expert_model_parallel_size=1"
            raise UserError(f"{stored} and actor.expert_tensor_parallel_size=0: go on with those")
        _complete(_adam(loaded[name]), _adam(loaded[_PARTS[0]]), _adam(part.state_dict()))
    for name, part in parts.items():
        _translate(_adam(loaded[name]), part.optimizer)
        fresh = _adam(part.state_dict())["param_groups"][0]
        for group in _adam(loaded[name])["param_groups"]:
            # Megatron tells groups apart by these, too; the rate of every step is set by the trainer.
            group.update({key: fresh[key] for key in ("max_lr", "min_lr") if key in fresh})
        part.load_state_dict(loaded[name])


def _adam(state: dict[str, Any]) -> dict[str, Any]:
    """The innermost optimizer's state; mixed precision wraps it."""
    inner: dict[str, Any] = state.get("optimizer", state)
    return inner


def _translate(state: dict[str, Any], adam: torch.optim.Optimizer) -> None:
    """Give state, in place, the form of this Adam: PyTorch's and Transformer Engine's load each other's checkpoints.

    They have other options, and one counts the steps of every tensor, the other those of a group.
    """
    for group in state["param_groups"]:
        for option, default in adam.defaults.items():
            group.setdefault(option, default)
    if "state" not in state:  # a distributed optimizer counts in the groups for both, in its own type of number
        for group in state["param_groups"]:
            if "step" in group:
                group["step"] = int(group["step"])
        return
    if isinstance(adam, torch.optim.Adam):
        counted = [group.pop("step") for group in state["param_groups"] if "step" in group]
        if counted:
            state["state"]["common_step"] = torch.tensor(float(counted[0]))
    elif "common_step" in state["state"]:
        steps = int(state["state"].pop("common_step"))
        for group in state["param_groups"]:
            group["step"] = steps


def _complete(state: dict[str, Any], stored: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Give state, in place, the bookkeeping its checkpoint lacks: fresh hyperparameters, how many steps were stored."""
    for group, new in zip(state["param_groups"], fresh["param_groups"], strict=True):
        if group.keys() == {"params"}:
            steps = {"step": stored["param_groups"][0]["step"]} if "step" in stored["param_groups"][0] else {}
            group.update({**new, **steps, "params": group["params"]})
    if "common_step" in stored.get("state", {}):
        state["state"].setdefault("common_step", stored["state"]["common_step"])
