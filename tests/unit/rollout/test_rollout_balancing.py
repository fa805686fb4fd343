"""Prompts go to the engine with the fewest outstanding tokens, and never to one that is full."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.rollout.balancing import Load, least_loaded, outstanding_tokens
from megatron_rlpr.rollout.vllm.dealing import Deal

LOADS = st.dictionaries(st.integers(0, 9), st.builds(Load, st.integers(0, 20), st.integers(0, 10**6)), max_size=6)


@given(LOADS, st.integers(1, 16))
def test_the_chosen_engine_has_room_and_nobody_with_room_has_less_to_do(loads: dict[int, Load], room: int) -> None:
    chosen = least_loaded(loads, room)
    free = {number: load for number, load in loads.items() if load.requests < room}
    if not free:
        assert chosen is None
    else:
        assert chosen in free
        assert free[chosen].tokens == min(load.tokens for load in free.values())


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=40), st.integers(1, 5))
def test_engines_filled_one_prompt_at_a_time_differ_by_one_prompt_at_most(
    prompts: list[tuple[int, int]], engines: int
) -> None:
    given_out: dict[int, list[tuple[int, int]]] = {number: [] for number in range(engines)}
    for prompt in prompts:
        loads = {number: Load(len(own), outstanding_tokens(own, 0)) for number, own in given_out.items()}
        number = least_loaded(loads, room=len(prompts) + 1)
        assert number is not None
        given_out[number].append(prompt)
    sums = [outstanding_tokens(own, 0) for own in given_out.values()]
    assert max(sums) - min(sums) <= max(sum(prompt) for prompt in prompts)


def test_what_is_written_is_no_longer_outstanding() -> None:
    assert outstanding_tokens([(10, 100), (20, 100)], written=50) == 180
    assert outstanding_tokens([(10, 1)], written=12) == 0


@given(
    st.lists(st.integers(1, 300), max_size=40), st.integers(1, 8), st.integers(1, 5), st.integers(1, 40), st.randoms()
)
def test_every_prompt_is_dealt_once_and_no_engine_gets_more_than_it_has_room_for(
    sizes: list[int], n: int, engines: int, room: int, dice: random.Random
) -> None:
    deal = Deal(sizes, n, engines, room)
    working: list[set[int]] = [set() for _ in range(engines)]
    dealt: list[int] = []
    for round_ in range(10_000):
        given_now = deal.give()
        for engine, prompts in enumerate(given_now):
            dealt += prompts
            working[engine] |= {prompt * n + sample for prompt in prompts for sample in range(n)}
            assert len(working[engine]) <= max(room, n)
        if round_ == 0:
            share = max(1, room // n) * engines
            assert given_now == [list(range(len(sizes)))[:share][engine::engines] for engine in range(engines)]
        if deal.all_dealt:
            break
        assert any(working), "somebody works while prompts wait"
        for engine, own in enumerate(working):
            finished = {number for number in own if dice.random() < 0.5}
            own -= finished
            deal.took(engine, finished, written=0)
    assert sorted(dealt) == list(range(len(sizes)))


def test_the_next_prompt_goes_to_the_engine_that_has_the_least_left_to_write() -> None:
    deal = Deal([100] * 6, n=2, engines=2, room=4)
    assert deal.give() == [[0, 2], [1, 3]]
    deal.took(0, {0, 1}, written=10)
    deal.took(1, {2, 3}, written=150)
    assert deal.give() == [[5], [4]], "190 and 50 tokens are left"


def test_without_a_limit_everything_is_dealt_in_turn() -> None:
    deal = Deal([5] * 5, n=3, engines=2, room=None)
    assert deal.give() == [[0, 2, 4], [1, 3]]
    assert deal.all_dealt
