"""Which prompts a step works on: whole epochs, no repeats in a batch, resumable anywhere, cached prompts first."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.data.sampler import PromptSampler
from megatron_rlpr.types import UserError

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda pair: (max(pair), min(pair)))


@settings(deadline=None)
@given(size=sizes, shuffle=st.booleans(), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_every_prompt_is_visited_once_per_epoch_and_none_twice_in_a_batch(
    size: tuple[int, int], shuffle: bool, seed: int, epochs: int
) -> None:
    prompts, batch_size = size
    sampler = PromptSampler(prompts, batch_size, shuffle, seed)
    batches = [sampler.next_batch() for _ in range(epochs * prompts // batch_size + 1)]
    assert all(len(batch) == len(set(batch)) == batch_size for batch in batches)
    visits = Counter(chain.from_iterable(batches))
    put_off = Counter(sampler.state_dict()["deferred"])
    drawn_in_this_epoch = sampler.state_dict()["position"]
    assert sum(visits.values()) + sum(put_off.values()) == sampler.epoch * prompts + drawn_in_this_epoch
    assert all(sampler.epoch <= visits[p] + put_off[p] <= sampler.epoch + 1 for p in range(prompts))


def test_an_epoch_that_batches_divide_is_an_exact_partition() -> None:
    sampler = PromptSampler(12, 4, shuffle=True, seed=3)
    for _ in range(3):
        assert sorted(chain.from_iterable(sampler.next_batch() for _ in range(3))) == list(range(12))
    assert sampler.epoch == 3


def test_a_batch_goes_on_into_the_next_epoch() -> None:
    sampler = PromptSampler(5, 3, shuffle=False, seed=0)
    assert [sampler.next_batch() for _ in range(4)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]


def test_a_prompt_that_would_come_twice_waits_for_the_next_batch() -> None:
    sampler = PromptSampler(4, 3, shuffle=True, seed=1)
    batches = [sampler.next_batch() for _ in range(40)]
    assert all(len(set(batch)) == 3 for batch in batches)
    counts = Counter(chain.from_iterable(batches))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_orders_differ_between_epochs_and_seeds_and_repeat_for_the_same() -> None:
    first = PromptSampler(50, 50, shuffle=True, seed=1)
    one, two = first.next_batch(), first.next_batch()
    assert one != two
    assert PromptSampler(50, 50, shuffle=True, seed=1).next_batch() == one
    assert PromptSampler(50, 50, shuffle=True, seed=2).next_batch() != one
    assert PromptSampler(50, 50, shuffle=False, seed=2).next_batch() == list(range(50))


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 2**31), data=st.data())
def test_a_resumed_sampler_continues_exactly(size: tuple[int, int], seed: int, data: st.DataObject) -> None:
    prompts, batch_size = size
    sampler = PromptSampler(prompts, batch_size, shuffle=True, seed=seed)
    for _ in range(data.draw(st.integers(0, 12))):
        batch = sampler.next_batch()
        sampler.add_to_cache(batch[: data.draw(st.integers(0, batch_size))])
    resumed = PromptSampler(prompts, batch_size, shuffle=True, seed=seed)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert resumed.cached == sampler.cached
    assert [resumed.next_batch() for _ in range(10)] == [sampler.next_batch() for _ in range(10)]


def test_cached_prompts_come_first_once_they_fill_a_batch() -> None:
    sampler = PromptSampler(10, 3, shuffle=False, seed=0)
    assert sampler.next_batch() == [0, 1, 2]
    sampler.add_to_cache([2, 0])
    assert sampler.next_batch() == [3, 4, 5], "two cached prompts are no batch"
    sampler.add_to_cache([4, 5])
    assert sampler.next_batch() == [2, 0, 4]
    assert sampler.cached == (5,)
    assert sampler.next_batch() == [6, 7, 8], "the epoch goes on where it was"


def test_a_prompt_cached_twice_is_served_in_two_batches() -> None:
    sampler = PromptSampler(10, 2, shuffle=False, seed=0)
    sampler.add_to_cache([7, 7, 8, 9])
    assert sampler.next_batch() == [7, 8]
    assert sampler.next_batch() == [7, 9]
    assert sampler.cached == ()


@pytest.mark.parametrize(("prompts", "batch_size"), [(3, 4), (3, 0), (0, 1)])
def test_a_batch_must_fit_the_data(prompts: int, batch_size: int) -> None:
    with pytest.raises(UserError, match=r"data\.train_batch_size"):
        PromptSampler(prompts, batch_size, shuffle=True, seed=0)


def test_the_state_of_another_data_set_is_refused() -> None:
    state = PromptSampler(10, 3, shuffle=True, seed=0).state_dict()
    with pytest.raises(UserError, match="num_prompts"):
        PromptSampler(11, 3, shuffle=True, seed=0).load_state_dict(state)
