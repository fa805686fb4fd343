"""A checkpoint is read once: of what the ranks of a data-parallel group share, each reads a part and sends it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

from megatron_rlpr.system.decisions import gather_or_raise
from megatron_rlpr.weights.damage import damage_named


def load_in_parallel(wanted: dict[str, Any], weights: Path, named: Path, fix: str) -> dict[str, Any]:
    """What `dist_checkpointing.load` gives for the entries wanted of the folder `weights`. Collective.

    Raises UserError on all ranks, which names the checkpoint `named` and the fix, when one of them cannot read it.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(_ReadTogether(named, fix), group)
    with damage_named(named, fix):
        loaded: dict[str, Any] = dist_checkpointing.load(wanted, str(weights), strategy)
    return loaded


class _ReadTogether(TorchDistLoadShardedStrategy):
    """A rank that cannot read its part tells the others, which would wait for what it should send."""

    def __init__(self, named: Path, fix: str) -> None:
        super().__init__()
        self._named, self._fix = named, fix

    def load(self, entries: dict[Any, Any], folder: Path, async_strategy: str = "mcore") -> dict[Any, Any]:
        read: list[dict[Any, Any]] = []

        def mine() -> None:
            with damage_named(self._named, self._fix):
                read.append(super(_ReadTogether, self).load(entries, folder, async_strategy))

        gather_or_raise(mine, dist.group.WORLD, "reading the checkpoint")
        return read[0]
