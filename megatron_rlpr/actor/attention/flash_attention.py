"""Tree attention through PyTorch's variable-length flash attention (CUDA, half precision)."""

from __future__ import annotations

import torch

from megatron_rlpr.actor.attention.flash_layout import PathSegments

_LARGEST_HEAD = 256
"""Head sizes of the flash-attention kernels that come with PyTorch."""


def flash_applies(dtype: torch.dtype, head_dim: int, softcap: float | None) -> bool:
    """Whether the kernel can compute this attention: it knows no fp32 and no soft-capping."""
    return (
        torch.cuda.is_available()
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= _LARGEST_HEAD
        and softcap is None
    )


def flash_tree_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: PathSegments) -> torch.Tensor:
    """q [T, K, g, D] (already scaled), k, v [T, K, D] -> [T, K, g, D]; the gradients of gathered keys add up."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q.flatten(1, 2),
        k.index_select(0, segments.keys),
        v.index_select(0, segments.keys),
        segments.query_bounds,
        segments.key_bounds,
        segments.longest_query,
        segments.longest_keys,
        scale=1.0,
        # Tokens to the left of a query's own, and none to the right.
        window_size=(segments.window - 1 if segments.window else -1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, torch.Tensor)
    return out.view_as(q)
