"""PyTorch's AdamW inside Megatron's distributed optimizer: what its checkpoints need where Transformer Engine is not.

Megatron-Core 0.19.2 counts on Transformer Engine's Adam, whose steps are counted in the parameter groups. With
PyTorch's, which counts them in every tensor's state, training is right, but a state that no step has made yet cannot
be asked for (AssertionError), and Megatron's ways of loading one go wrong: with a KeyError, a RuntimeError, or
silently, by giving all tensors one and the same count, which each of their updates then advances. `optimizer_shards`
loads without them.
"""

from __future__ import annotations

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def begin(part: MegatronOptimizer) -> None:
    """Make the state of a distributed optimizer around PyTorch's Adam, as its first step would; others stay as they
    are."""
    adam = part.optimizer
    if not (isinstance(part, DistributedOptimizer) and isinstance(adam, torch.optim.Adam)):
        return
    for parameter in (parameter for group in adam.param_groups for parameter in group["params"]):
        if not adam.state[parameter]:
            averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[parameter] = {"step": torch.tensor(0.0), **averages}
