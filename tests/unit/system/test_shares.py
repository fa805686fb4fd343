"""Arrays become bytes and arrays again; a process alone keeps what it has. (Between ranks:
tests/distributed/test_owning_ranks.py.)"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.system.shares import Shares, node_shape, pack, unpack
from megatron_rlpr.types import UserError

KINDS = (np.int32, np.float32, np.float64, np.uint8)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 40)), max_size=6), st.integers(0, 2**32 - 1))
def test_every_bit_of_packed_arrays_comes_back(described: list[tuple[type, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [np.frombuffer(rng.bytes(n * np.dtype(kind).itemsize), dtype=kind) for kind, n in described]
    back = unpack(pack(arrays))
    assert [(a.dtype, a.tobytes()) for a in back] == [(a.dtype, a.tobytes()) for a in arrays]


def test_a_process_alone_gathers_its_own_and_raises_its_own() -> None:
    def fail() -> list[np.ndarray]:
        raise UserError("a bad row")

    alone = Shares.of_world()
    ((own,),) = alone.gather(lambda: [np.arange(3.0)], "work")
    assert own.tolist() == [0, 1, 2]
    assert alone.from_first([own])[0] is own
    assert (alone.rank, alone.size, alone.alone) == (0, 1, True)
    with pytest.raises(UserError, match="a bad row"):
        alone.gather(fail, "work")


@pytest.mark.parametrize(
    ("of_node", "rank", "expected"), [("8", 7, (0, 8)), ("8", 8, (1, 8)), ("8", 63, (7, 8)), (None, 5, (0, 64))]
)
def test_ranks_are_on_the_nodes_that_torchrun_names(
    of_node: str | None, rank: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if of_node:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", of_node)
    assert node_shape(rank, 64) == expected


@given(st.integers(0, 50), st.integers(1, 9))
def test_every_item_is_one_ranks(count: int, ranks: int) -> None:
    parts = []
    for rank in range(ranks):
        of_rank = Shares()
        of_rank.rank, of_rank.size = rank, ranks
        parts.append(range(count)[of_rank.part_of(count)])
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
