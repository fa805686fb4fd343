"""How many files and sockets a process may have open at once, and what groups of ranks take of them.

In a gloo group every rank has a socket for every other one. Hundreds of ranks and a few groups of all of them are more
than the 1,024 that many systems allow at first; a process may raise its own limit up to a hard one.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable

_OWN = 4
"""Descriptors of a gloo group beside the sockets to other ranks: it listens, and its thread waits for events. Measured
with torch 2.x for 2, 4 and 8 ranks (tests/distributed/test_descriptors.py)."""
_ENOUGH = 65_536
"""What nothing here comes near: more is not asked for where the system would allow a billion."""


def of_groups(sizes: Iterable[int]) -> int:
    """Descriptors that gloo groups of so many ranks take in each of them."""
    return sum(size - 1 + _OWN for size in sizes)


def most_allowed() -> float:
    """How many descriptors this process could be allowed (the hard limit)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if hard == resource.RLIM_INFINITY else hard


def allow(needed: int) -> None:
    """Raise this process's soft limit where it is less than needed. Children inherit it.

    Raises ValueError when the hard limit is less; `config.checks` has refused that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if most_allowed() < needed:
        raise ValueError(f"{needed} open files are needed, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(most_allowed(), max(needed, _ENOUGH))), hard))
