"""Random forests of prefixes for tests of tree attention."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from megatron_rlpr.packing import Nodes


class Forest:
    """A random forest in depth-first order, with each token's path computed the slow way."""

    def __init__(self) -> None:
        self.start: list[int] = []
        self.stop: list[int] = []
        self.parent: list[int] = []
        self.subtree_stop: list[int] = []
        self.paths: list[list[int]] = []

    def add(self, spec: tuple[int, list], parent: int = -1, path: tuple[int, ...] = ()) -> None:
        length, children = spec
        node, first = len(self.start), len(self.paths)
        self.start.append(first)
        self.stop.append(first + length)
        self.parent.append(parent)
        self.subtree_stop.append(-1)
        path_here = list(path)
        for token in range(first, first + length):
            path_here.append(token)
            self.paths.append(list(path_here))
        for child in children:
            self.add(child, node, tuple(path_here))
        self.subtree_stop[node] = len(self.paths)

    @property
    def nodes(self) -> Nodes:
        return Nodes(*(np.asarray(a, dtype=np.int64) for a in (self.start, self.stop, self.parent, self.subtree_stop)))


leaf = st.tuples(st.integers(1, 9), st.just([]))
forests = st.lists(
    st.recursive(leaf, lambda inner: st.tuples(st.integers(1, 9), st.lists(inner, max_size=3)), max_leaves=8),
    min_size=1,
    max_size=3,
)
