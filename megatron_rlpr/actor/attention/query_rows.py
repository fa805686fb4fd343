"""Which tokens of a forest ask, where not all of them do (context parallelism): as ranges of neighbouring tokens."""

from __future__ import annotations

import numpy as np

from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray


def ranges(rows: IntArray) -> list[tuple[int, int]]:
    """Tokens in increasing order as maximal ranges: the first, and the end."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def pieces(nodes: Nodes, rows: IntArray | None) -> tuple[IntArray, IntArray, IntArray]:
    """As maximal ranges within one node each: int64 [P] nodes, first tokens and ends. rows None: all tokens."""
    if rows is None:
        return np.arange(len(nodes.start)), nodes.start, nodes.stop
    node = np.searchsorted(nodes.start, rows, side="right") - 1
    first = np.flatnonzero(np.append(True, (np.diff(rows) != 1) | (np.diff(node) != 0)))
    last = np.append(first[1:], len(rows)) - 1
    return node[first], rows[first], rows[last] + 1
