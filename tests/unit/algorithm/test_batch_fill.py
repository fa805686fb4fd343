"""A batch is filled in rounds and no group is lost on the way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scored_groups import scored_group

from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.types import ScoredGroup

rounds_of_decisions = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), max_size=8)


def prompts(groups: list[ScoredGroup]) -> list[int]:
    return [group.group.prompt.index for group in groups]


@given(size=st.integers(1, 8), max_rounds=st.integers(1, 6), carried=st.integers(0, 10), decisions=rounds_of_decisions)
def test_every_group_is_trained_left_over_or_dropped(
    size: int, max_rounds: int, carried: int, decisions: list[list[bool]]
) -> None:
    groups = [scored_group([0.0], prompt=i) for i in range(carried + sum(map(len, decisions)))]
    fill = BatchFill(size, max_rounds, groups[:carried])
    seen, passed = carried, list(range(carried))
    for keep in decisions:
        if not fill.wants_more:
            break
        fill.offer(groups[seen : seen + len(keep)], keep)
        passed += [seen + i for i, kept in enumerate(keep) if kept]
        seen += len(keep)

    batch, surplus = fill.take()

    assert prompts(batch) == passed[:size]
    assert prompts(surplus) == passed[size:]
    assert sorted(prompts(batch) + prompts(surplus) + prompts(fill.dropped)) == list(range(seen))
    assert [prompts([g])[0] for g, kept in zip(fill.history, fill.kept, strict=True) if kept] == passed[carried:]
    assert len(fill.history) == seen - carried
    assert fill.rounds <= max_rounds
    assert fill.wants_more == (len(batch) < size and fill.rounds < max_rounds)


def test_rounds_stop_when_the_batch_is_full() -> None:
    fill = BatchFill(train_batch_size=2, max_rounds=5)
    fill.offer([scored_group([0.0])] * 2, [True, False])
    assert fill.wants_more
    fill.offer([scored_group([0.0])] * 2, [True, True])
    assert not fill.wants_more
    assert fill.kept_fraction == 0.75


def test_rounds_stop_at_their_limit_with_a_smaller_batch() -> None:
    fill = BatchFill(train_batch_size=2, max_rounds=1)
    fill.offer([scored_group([0.0], prompt=7)] * 2, [False, True])
    assert not fill.wants_more
    assert prompts(fill.take()[0]) == [7]


def test_a_batch_carried_over_needs_no_new_group() -> None:
    fill = BatchFill(train_batch_size=1, max_rounds=1, carried=[scored_group([0.0])])
    assert not fill.wants_more
    assert fill.kept_fraction == 1.0


def test_content_tells_a_bit_of_a_reward_a_verdict_and_an_order_apart() -> None:
    def content(rewards: list[float], keep: list[bool], order: int = 1) -> bytes:
        fill = BatchFill(train_batch_size=2, max_rounds=1)
        fill.offer([scored_group([reward], prompt=i) for i, reward in enumerate(rewards)][::order], keep)
        return fill.content

    same = content([0.5, 0.25], [True, False])
    assert same == content([0.5, 0.25], [True, False])
    others = [
        content([0.5, np.nextafter(0.25, 1)], [True, False]),
        content([0.5, 0.25], [True, True]),
        content([0.5, 0.25], [True, False], -1),
    ]
    assert same not in others
