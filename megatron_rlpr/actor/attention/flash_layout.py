"""A forest of prefixes as a batch for variable-length flash attention.

Every node is one sequence of the batch: its queries are the node's own tokens, its keys the tokens of the whole path
from the root to the node's end, gathered. The kernel's causal mask is aligned at the bottom right, so the last query
sees the last key, and every token attends to its ancestors and to itself. A sliding window is the kernel's own; keys
that lie before every query's window are not gathered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from megatron_rlpr.types import IntArray


@dataclass(frozen=True)
class PathSegments:
    """N nodes in token order.

    keys: int64 [S], token indices of all nodes' keys, one node after the other. query_bounds, key_bounds: int32 [N +
    1], where each node's queries and keys begin. longest_query, longest_keys: of any node. window: 0 for none.
    """

    keys: torch.Tensor
    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    longest_query: int
    longest_keys: int
    window: int


def path_segments(
    node_start: IntArray, node_stop: IntArray, node_parent: IntArray, device: torch.device, window: int = 0
) -> PathSegments:
    """The segments of a forest in depth-first order; the arrays are those of `attention_runs`."""
    paths: list[IntArray] = []
    keys: list[IntArray] = []
    for start, stop, parent in zip(node_start, node_stop, node_parent, strict=True):
        before = paths[parent] if parent >= 0 else np.empty(0, dtype=np.int64)
        paths.append(np.concatenate([before, np.arange(start, stop)]))
        keys.append(paths[-1][max(0, len(before) - window + 1) if window else 0 :])
    lengths = np.array([len(k) for k in keys], dtype=np.int64)
    return PathSegments(
        keys=torch.from_numpy(np.concatenate(keys)).to(device),
        query_bounds=torch.from_numpy(np.append(node_start, node_stop[-1])).to(device=device, dtype=torch.int32),
        key_bounds=torch.from_numpy(np.append(0, np.cumsum(lengths))).to(device=device, dtype=torch.int32),
        longest_query=int((node_stop - node_start).max()),
        longest_keys=int(lengths.max()),
        window=window,
    )
