"""Items come in order, one is made ahead and no more, and an error comes in its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.weights.buckets import in_buckets, one_ahead


@given(st.lists(st.integers(), max_size=8))
def test_the_items_and_their_order_stay(items: list[int]) -> None:
    assert list(one_ahead(items)) == items


def test_the_next_item_and_no_other_is_made_while_one_is_used() -> None:
    made = threading.Semaphore(0)
    count = []

    def items() -> Iterator[int]:
        for item in range(5):
            count.append(item)
            made.release()
            yield item

    for used, _ in enumerate(one_ahead(items())):
        if used == 0:
            assert made.acquire(timeout=600)
        assert used == 4 or made.acquire(timeout=600), "the next item is made without being asked for"
        assert len(count) == min(used + 2, 5)


def test_an_error_is_raised_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        found.extend(one_ahead(items()))
    stream = one_ahead(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)


@given(st.lists(st.integers(0, 9)), st.integers(1, 12))
def test_buckets_are_as_full_as_the_limit_allows(sizes: list[int], limit: int) -> None:
    buckets = list(in_buckets(sizes, lambda size: size, limit))
    assert [size for bucket in buckets for size in bucket] == sizes
    assert all(sum(bucket) <= limit or len(bucket) == 1 for bucket in buckets)
    assert all(sum(bucket) + following[0] > limit for bucket, following in pairwise(buckets))
