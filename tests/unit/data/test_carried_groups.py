"""Groups that wait for the next step survive a checkpoint unchanged."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from training_records import scored

from megatron_rlpr.data.carried_groups import from_state, to_state
from megatron_rlpr.types import ScoredGroup


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.floats(-1, 1), min_size=1, max_size=4)), max_size=4))
def test_a_round_trip_through_json_changes_nothing(described: list[tuple[int, list[float]]]) -> None:
    groups = [scored(index, rewards, range(1, len(rewards) + 1)) for index, rewards in described]
    back = from_state(json.loads(json.dumps(to_state(groups))))
    assert [plain(group) for group in back] == [plain(group) for group in groups]
    for group in back:
        for token_scores in group.scores:
            assert token_scores.log_probs.dtype == token_scores.entropies.dtype == np.float32


def plain(group: ScoredGroup) -> tuple[object, ...]:
    """Everything in a group, comparable; `extra`, which equality of prompts leaves out, included."""
    numbers = [(s.log_probs.tolist(), s.entropies.tolist()) for s in group.scores]
    return group.group, group.group.prompt.extra, numbers, group.rewards
