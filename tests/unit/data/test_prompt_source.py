"""Surplus comes back: as prompts to be answered again, or as the groups they are."""

from __future__ import annotations

import json

import pytest
from training_records import prompt, scored

from megatron_rlpr.data.carried_groups import to_state
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.data.sampler import PromptSampler

INDICES = (2, 3, 5, 7, 11, 13)
"""Row numbers, with gaps where rows were dropped: they are no positions."""


def source(regenerate: bool) -> PromptSource:
    prompts = PromptSet(tuple(prompt(index) for index in INDICES), dropped=8)
    return PromptSource(prompts, PromptSampler(len(prompts), 2, shuffle=False, seed=0), regenerate)


def indices(made: PromptSource) -> list[int]:
    return [p.index for p in made.next_batch()]


def test_surplus_prompts_are_served_again_before_new_ones() -> None:
    made = source(regenerate=True)
    assert indices(made) == [2, 3]
    made.put_back([scored(11, [0.5], [1]), scored(3, [0.5], [1])])
    assert made.cached == 2
    assert made.carried == []
    assert indices(made) == [11, 3]
    assert made.cached == 0
    assert indices(made) == [5, 7]


def test_surplus_groups_are_carried_once() -> None:
    made = source(regenerate=False)
    surplus = [scored(11, [0.5], [1])]
    made.put_back(surplus)
    assert made.carried == surplus
    assert made.cached == 1
    assert indices(made) == [2, 3], "the sampler knows nothing of them"
    made.put_back([])
    assert made.carried == []


def test_carried_groups_get_the_texts_of_others_only_where_they_are_stored() -> None:
    whole = {11: scored(11, [0.5], [1]), 3: scored(3, [1.0], [2])}
    prompts = PromptSet(tuple(prompt(index) for index in INDICES), dropped=8)
    sampler = PromptSampler(len(prompts), 2, shuffle=False, seed=0)
    made = PromptSource(prompts, sampler, False, lambda group: whole[group.group.prompt.index])
    carried = [scored(index, [0.0], [7]) for index in whole]
    made.put_back(carried)
    remembered = made.remembered()
    assert made.carried == carried
    made.put_back([])
    assert remembered()["carried"] == to_state(list(whole.values()))


@pytest.mark.parametrize("regenerate", [True, False])
def test_a_resumed_source_goes_on_exactly(regenerate: bool) -> None:
    made, resumed = source(regenerate), source(regenerate)
    made.next_batch()
    made.put_back([scored(13, [0.5, 1.0], [1, 2]), scored(2, [0.0, 1.0], [3, 1])])
    resumed.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert [g.group for g in resumed.carried] == [g.group for g in made.carried]
    assert resumed.cached == made.cached == 2
    for _ in range(7):
        assert resumed.next_batch() == made.next_batch()
    assert resumed.epoch == made.epoch == 2
