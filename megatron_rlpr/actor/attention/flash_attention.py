"""Tree attention through PyTorch's variable-length flash attention (CUDA, half precision).

Every node is one sequence of the batch: its queries are the node's own tokens, its keys the tokens of the whole path
from the root to the node's end, gathered. The kernel's causal mask is aligned at the bottom right, so the last query
sees the last key, and every token attends to its ancestors and to itself. A sliding window is the kernel's own; keys
that lie before every query's window are not gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from megatron_rlpr.actor.attention.rotary import Rotary
from megatron_rlpr.packing import Nodes

_LARGEST_HEAD = 256
"""Head sizes of the flash-attention kernels that come with PyTorch."""


@dataclass(frozen=True)
class Segments:
    """N nodes in token order.

    keys: int64 [S], token indices of all nodes' keys, one node after the other. query_bounds, key_bounds: int32
    [N + 1], where each node's queries and keys begin. longest_query, longest_keys: of any node. window: 0 for none.
    """

    keys: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_keys: int
    window: int


class FlashBackend:
    """It knows no fp32 and no soft-capping; the gradients of gathered keys add up."""

    name = "PyTorch's flash attention"

    def applies(self, dtype: torch.dtype, head_dim: int, softcap: float | None, device: torch.device) -> bool:
        fits = dtype in (torch.bfloat16, torch.float16) and head_dim <= _LARGEST_HEAD and softcap is None
        return device.type == "cuda" and fits

    def missing(self) -> str:
        return "" if find_spec("torch.nn.attention.varlen") else "this PyTorch has none of variable length"

    def lay_out(self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int = 0) -> Segments:
        sizes = nodes.stop - nodes.start
        hidden = [max(0, len(p) - n - window + 1) if window else 0 for p, n in zip(nodes.paths, sizes, strict=True)]
        keys = [path[first:] for path, first in zip(nodes.paths, hidden, strict=True)]
        lengths = [len(k) for k in keys]
        return Segments(
            keys=torch.from_numpy(np.concatenate(keys)).to(device),
            query_bounds=torch.from_numpy(np.append(nodes.start, nodes.stop[-1])).to(device=device, dtype=torch.int32),
            key_bounds=torch.tensor(np.cumsum([0, *lengths]), device=device, dtype=torch.int32),
            longest_query=int(sizes.max()),
            longest_keys=max(lengths),
            window=window,
        )

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Segments, rotary: Rotary, scale: float, softcap: float | None
    ) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            rotary.rotate(q * scale),
            rotary.rotate(k).index_select(0, layout.keys),
            v.index_select(0, layout.keys),
            layout.query_bounds,
            layout.key_bounds,
            layout.longest_query,
            layout.longest_keys,
            scale=1.0,
            # Tokens to the left of a query's own, and none to the right.
            window_size=(layout.window - 1 if layout.window else -1, 0),
            enable_gqa=True,
        )
        assert isinstance(out, Tensor)
        return out
