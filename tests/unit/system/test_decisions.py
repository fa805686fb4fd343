"""Without peers, an error is still raised in the common form (with peers:
tests/distributed/test_rollout_colocated.py)."""

from __future__ import annotations

import pytest

from megatron_rlpr.system.decisions import RankError, gather_or_raise
from megatron_rlpr.types import UserError


def fail(error: Exception) -> None:
    raise error


def test_the_results_come_back_in_rank_order() -> None:
    assert gather_or_raise(lambda: 7, None, "work") == [7]


def test_a_failure_names_the_rank_and_the_cause() -> None:
    with pytest.raises(
        RankError, match="generation failed on 1 of 1 ranks: rank 0: ValueError: no such thing"
    ) as error:
        gather_or_raise(lambda: fail(ValueError("no such thing")), None, "generation")
    assert isinstance(error.value.__cause__, ValueError)


def test_a_users_mistake_stays_one_clear_message() -> None:
    with pytest.raises(UserError, match=r"^prompt 3: the prompt has no tokens$"):
        gather_or_raise(lambda: fail(UserError("prompt 3: the prompt has no tokens")), None, "generation")
