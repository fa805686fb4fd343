"""The sizes of process groups that are told before they are made are those that Megatron makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.group_sizes import group_sizes
from megatron_rlpr.config.schema import ActorConfig

TP8_PP8 = {"tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 8}
LAYOUTS: list[tuple[int, dict[str, int]]] = [
    (1, {}),
    (2, {}),
    (8, {"tensor_model_parallel_size": 2}),
    (8, {"pipeline_model_parallel_size": 4}),
    (16, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2}),
    (16, {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 4}),
    (16, {"tensor_model_parallel_size": 4, "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 2}),
    (512, {}),
    (512, TP8_PP8),
]


@pytest.mark.parametrize(("world_size", "keys"), LAYOUTS)
def test_the_groups_of_a_rank_are_those_that_megatron_makes(
    world_size: int, keys: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, new_group = [world_size], dist.new_group

    def counted(ranks: Sequence[int] | None = None, **_: Any) -> Any:
        members = range(world_size) if ranks is None else ranks
        if 0 in members:
            made.append(len(members))
        return new_group(ranks, backend="fake")

    monkeypatch.setattr("torch.distributed.new_group", counted)
    actor = ActorConfig(**keys)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        parallel.initialize(actor, seed=1)
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    assert sorted(group_sizes(actor, world_size)) == sorted(made)
