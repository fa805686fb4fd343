"""Prompts go to the engine with the fewest outstanding tokens, and never to one that is full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.rollout.ray.balancing import Load, least_loaded, outstanding_tokens

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
