"""Keys and values of all context-parallel ranks, which ask for their own tokens each.

A rank has rotated the keys of its own tokens; one collective gathers them with the values, in every layer, and its
backward gives every rank the sum of what all ranks' queries say about its tokens. Memory grows with the tokens of the
whole micro-batch for one layer at a time: what is gathered again in a recomputed layer was not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rlpr.actor.to_device import to_device
from megatron_rlpr.packing import ContextShare


@dataclass(frozen=True)
class ContextGather:
    """The ranks of a group share a forest of T tokens.

    gathered: int64 [T], the tokens in the order in which the ranks have them, one rank after the other; place: int64
    [T], where in it each token is.
    """

    group: dist.ProcessGroup
    gathered: Tensor
    place: Tensor

    @staticmethod
    def of(share: ContextShare, group: dist.ProcessGroup, device: torch.device) -> ContextGather:
        """share: the same on all ranks of the group, but for whose it is."""
        gathered = share.tokens_of_ranks.ravel()
        return ContextGather(group, to_device(gathered, device), to_device(np.argsort(gathered), device))

    def keys_and_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's k and v, [T / C, K, D] each -> those of all tokens in their order, [T, K, D]. Collective."""
        of_all: tuple[Tensor, Tensor] = _GatherTokens.apply(k, v, self)
        return of_all


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, gather: ContextGather) -> tuple[Tensor, Tensor]:
        ctx.gather = gather
        mine = torch.stack([k, v], dim=1)
        both = mine.new_empty(len(gather.place), *mine.shape[1:])
        dist.all_gather_into_tensor(both, mine, group=gather.group)
        keys, values = (part.index_select(0, gather.place) for part in both.unbind(1))
        return keys, values

    @staticmethod
    def backward(ctx: Any, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor, None]:
        gather = ctx.gather
        both = torch.stack([grad.index_select(0, gather.gathered) for grad in (grad_k, grad_v)], dim=1)
        mine = both.new_empty(len(both) // dist.get_world_size(gather.group), *both.shape[1:])
        dist.reduce_scatter_tensor(mine, both, group=gather.group)
        return *mine.unbind(1), None
