"""Arrays arrive at every rank as they were, and one rank's failure is everybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from warm_start import start

from megatron_rlpr.system.array_exchange import arrays_of_first_rank, gather_arrays, share_of
from megatron_rlpr.types import UserError

pytestmark = pytest.mark.distributed

PROGRAM = Path(__file__).parent / "programs" / "exchanging_ranks.py"
RANKS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the ranks found, in rank order."""
    place = tmp_path_factory.mktemp("exchange")
    status, output = start(str(PROGRAM), [place], place / "log", ranks=RANKS).end()
    assert status == 0, output[-4000:]
    return [json.loads((place / f"found_{rank}.json").read_text()) for rank in range(RANKS)]


def test_arrays_of_any_length_arrive_as_they_were(found: list[dict[str, Any]]) -> None:
    assert [(line["ragged"], line["first"]) for line in found] == [(True, True)] * RANKS


def test_what_one_rank_raises_all_raise_and_the_next_exchange_works(found: list[dict[str, Any]]) -> None:
    assert [line["user"] for line in found] == ["UserError: a bad row"] * RANKS
    bug = "RankError: exchange failed on 1 of 3 ranks: rank 1: ValueError: a bug"
    assert [line["other"] for line in found] == [bug] * RANKS
    assert [line["goes_on"] for line in found] == [[[0], [1], [2]]] * RANKS


def test_every_item_is_one_ranks(found: list[dict[str, Any]]) -> None:
    assert [line["share"] for line in found] == [[0, 3], [3, 6], [6, 10]]


def test_a_process_alone_keeps_what_it_has() -> None:
    (alone,) = gather_arrays(lambda: np.arange(3), "exchange")
    (told,) = arrays_of_first_rank(lambda: [alone])
    assert alone.tolist() == told.tolist() == [0, 1, 2]
    assert share_of(10) == slice(0, 10)

    def fail() -> np.ndarray:
        raise UserError("a bad row")

    with pytest.raises(UserError, match="a bad row"):
        gather_arrays(fail, "exchange")
