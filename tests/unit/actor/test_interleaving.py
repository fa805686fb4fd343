"""Groups of micro-batches are such that Megatron's interleaved schedule takes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.actor.interleaving import micro_batch_group

stages_and_more = st.integers(1, 32).flatmap(lambda stages: st.tuples(st.just(stages), st.integers(stages, 300)))


def groups(micro_batches: int, size: int) -> list[int]:
    """How many micro-batches each group has."""
    return [min(size, micro_batches - first) for first in range(0, micro_batches, size)]


@given(stages_and_more)
def test_every_group_keeps_every_stage_busy_and_none_smaller_would(case: tuple[int, int]) -> None:
    stages, micro_batches = case
    size = micro_batch_group(micro_batches, stages)
    assert stages <= size <= micro_batches
    assert min(groups(micro_batches, size)) >= stages
    assert all(min(groups(micro_batches, smaller)) < stages for smaller in range(stages, size))


@pytest.mark.parametrize(("micro_batches", "stages"), [(1, 2), (0, 1), (7, 8), (3, 0)])
def test_fewer_micro_batches_than_stages_are_refused(micro_batches: int, stages: int) -> None:
    with pytest.raises(ValueError, match=f"{micro_batches} micro-batches"):
        micro_batch_group(micro_batches, stages)
