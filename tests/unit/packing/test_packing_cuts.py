"""Micro-batch cuts are the cheapest there are, and as even as that price allows; pieces spread over the ranks."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.packing.cuts import cut_evenly, cut_under_budget
from megatron_rlpr.packing.distribute import assign_pieces, cut_into_pieces


def run_tokens(length: np.ndarray, shared: np.ndarray, starts: list[int]) -> list[int]:
    """Distinct tokens of every run."""
    return [
        int((length - shared)[a:b].sum() + shared[a]) for a, b in zip(starts, [*starts[1:], len(length)], strict=True)
    ]


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(length, shared, price) of sorted sequences: nobody shares more than either neighbour has."""
    length = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    shared = [0] + [draw(st.integers(0, min(pair))) for pair in pairwise(length)]
    price = [draw(st.integers(1, 5)) for _ in length]
    return np.array(length), np.array(shared), np.array(price, dtype=np.float64)


@given(neighbours(), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_cuts_have_the_lowest_price_of_all_that_fit(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray], spare: int
) -> None:
    length, shared, price = columns
    budget = int(length.max()) + spare
    starts = cut_under_budget(length, shared, price, budget)
    assert starts[0] == 0
    assert max(run_tokens(length, shared, starts)) <= budget
    inner = range(1, len(length))
    every_way = ([0, *cuts] for count in range(len(length)) for cuts in combinations(inner, count))
    cheapest = min(price[way].sum() for way in every_way if max(run_tokens(length, shared, way)) <= budget)
    assert price[starts].sum() == cheapest


def test_even_cuts_make_the_largest_run_smaller_at_the_same_count() -> None:
    length, shared, price = np.full(12, 10), np.zeros(12, dtype=np.int64), np.ones(12)
    assert sorted(run_tokens(length, shared, cut_under_budget(length, shared, price, 100))) == [20, 100]
    assert run_tokens(length, shared, cut_evenly(length, shared, price, 100)) == [60, 60]


def test_even_cuts_do_not_separate_a_group_to_be_even() -> None:
    length, shared, price = np.full(12, 10), np.zeros(12, dtype=np.int64), np.ones(12)
    shared[1:9] = shared[10:] = 5
    price[1:9] = price[10:] = 6.0
    assert cut_evenly(length, shared, price, 60) == [0, 9]


def test_pieces_go_to_the_least_loaded_rank_costliest_first() -> None:
    assert assign_pieces(np.array([3.0, 8.0, 5.0, 6.0, 2.0]), 2).tolist() == [0, 0, 1, 1, 0]


def test_few_pieces_are_cut_where_they_are_even_and_many_where_little_is_separated() -> None:
    cost, again = np.full(12, 10.0), np.zeros(12)
    again[[1, 2, 3, 5, 6, 7, 9, 10, 11]] = 8.0  # groups of four
    until = np.concatenate([[0.0], np.cumsum(cost)])
    assert cut_into_pieces(until, again, num_pieces=2, pieces_per_rank=1) == [0, 6]
    assert cut_into_pieces(until, again, num_pieces=2, pieces_per_rank=4) == [0, 4]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40),
    st.integers(1, 45),
    st.sampled_from([1, 4, 64]),
)
@settings(max_examples=300, deadline=None)
def test_a_piece_starts_at_the_first_cheapest_place_around_its_target(
    costs: list[tuple[int, int]], num_pieces: int, pieces_per_rank: int
) -> None:
    added, again = (np.array(column, dtype=np.float64) for column in zip(*costs, strict=True))
    until = np.concatenate([[0.0], np.cumsum(added)])
    size = until[-1] / num_pieces
    expected = {0}
    for number in range(1, num_pieces):
        low, high = np.searchsorted(until, [(number - 0.5) * size, (number + 0.5) * size]).tolist()
        around = range(max(low, 1), min(high + 1, len(again)))
        if around:
            expected.add(min(around, key=lambda at: abs(until[at] - number * size) / pieces_per_rank + again[at]))
    assert cut_into_pieces(until, again, num_pieces, pieces_per_rank) == sorted(expected)
