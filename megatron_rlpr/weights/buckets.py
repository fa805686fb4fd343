"""Streams in buckets of bounded size, the next of which is made while the last one is being used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def in_buckets(items: Iterable[Item], nbytes: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Consecutive items together up to limit bytes; one that is larger alone."""
    bucket: list[Item] = []
    size = 0
    for item in items:
        more = nbytes(item)
        if bucket and size + more > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += more
    if bucket:
        yield bucket


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order; each next one is made by a thread of its own while the consumer has the last.

    At most two exist: the consumer's and the one that is being made or waits. An error of `items` is raised in turn.
    """
    source = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="one_ahead") as thread:
        coming = thread.submit(next, source, _END)
        while True:
            item = coming.result()
            if item is _END:
                return
            coming = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]
            del item
