"""PyTorch's AdamW inside Megatron's distributed optimizer: what its checkpoints need where Transformer Engine is not.

Megatron-Core 0.19.2 counts on Transformer Engine's Adam, whose steps are counted in the parameter groups. With
PyTorch's, which counts them in every tensor's state, training is right and three things of a checkpoint are not:

- a state that no step has made yet cannot be asked for (AssertionError): `_begin` makes it, as the first step would;
- loading copies every entry of the state, also the step, which is stored elsewhere (KeyError), and in place into
  parameters (RuntimeError): `_take_over` copies what was loaded, and nothing else;
- all tensors are given one and the same step tensor, which each of their updates then advances, so that the bias
  correction after a resume is silently wrong: `_load` gives each its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def make_resumable(part: MegatronOptimizer) -> None:
    """Let a distributed optimizer around PyTorch's Adam be saved and loaded, from the beginning; others stay as they
    are."""
    if isinstance(part, DistributedOptimizer) and isinstance(part.optimizer, torch.optim.Adam):
        _begin(part.optimizer)
        part._set_main_param_and_optimizer_states = partial(_take_over, part)
        part.load_state_dict = partial(_load, part, part.load_state_dict)


def _begin(adam: torch.optim.Adam) -> None:
    for parameter in (parameter for group in adam.param_groups for parameter in group["params"]):
        if not adam.state[parameter]:
            averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[parameter] = {"step": torch.tensor(0.0), **averages}


@torch.no_grad()
def _take_over(part: DistributedOptimizer, weight: torch.nn.Parameter, loaded: dict[str, Any]) -> None:
    """Set this rank's slice of a weight's fp32 values and averages: loaded holds them as "param" and by their names."""
    group, place = part.model_param_group_index_map[weight]
    master = part.optimizer.param_groups[group]["params"][place]
    for name, values in {"param": master, **part.optimizer.state[master]}.items():
        if name != "step":
            values.copy_(loaded[name])


def _load(part: DistributedOptimizer, megatrons: Any, state: dict[str, Any]) -> None:
    megatrons(state)
    for of_tensor in part.optimizer.state.values():
        of_tensor["step"] = of_tensor["step"].clone()
