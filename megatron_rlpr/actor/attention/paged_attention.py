"""Tree attention through vLLM's CPU attention kernel: one call for the whole forest (`paged_paths`).

The kernel uses AMX tiles where there are, knows sliding windows and soft-capping, and keeps scores in the cache of each
core. It has no backward; `block_attention` computes gradients from queries and keys, so nothing else is saved.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_rlpr.actor.attention.block_attention import block_gradients
from megatron_rlpr.actor.attention.paged_layout import PAGE_TOKENS, PagedPaths
from megatron_rlpr.actor.cpu import loops as cpu_loops
from megatron_rlpr.actor.cpu.kernels import cpu_kernels, has_amx

_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})


def paged_attention_applies(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel is here and can compute this attention."""
    return cpu_kernels() is not None and dtype in (torch.bfloat16, torch.float32) and head_dim in _HEAD_SIZES


class PagedAttention(torch.autograd.Function):
    """query [T, H, D], key and value [T, K, D], not yet rotated -> [T, H, D].

    rotary: [T, D], every token's cosines, then its sines, of the D / 2 angles. softcap: of the scaled scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        paths: PagedPaths,
        rotary: torch.Tensor,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        q, k, v = _rotated(query, rotary), _rotated(key, rotary), value.contiguous()
        out = torch.empty_like(q)
        _attend(out, q, k, v, paths, scale, softcap)
        ctx.save_for_backward(q, k, v, rotary)
        ctx.constants = (paths, scale, softcap)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, rotary = ctx.saved_tensors
        paths, scale, softcap = ctx.constants
        tokens, heads, dim = q.shape
        grouped = (tokens, k.shape[1], heads // k.shape[1], dim)
        keys, values = (x.transpose(0, 1).contiguous() for x in (k, v))
        scaled = (q * scale).view(grouped)
        grad_q, grad_k, grad_v = block_gradients(scaled, keys, values, grad_out.reshape(grouped), paths.runs, softcap)
        grad_q = _rotated(grad_q.view(q.shape).mul_(scale), rotary, back=True)
        return (
            grad_q,
            _rotated(grad_k.transpose(0, 1), rotary, back=True),
            grad_v.transpose(0, 1),
            None,
            None,
            None,
            None,
        )


def _rotated(x: torch.Tensor, rotary: torch.Tensor, back: bool = False) -> torch.Tensor:
    """x [T, heads, D], whose last dimension is dense, rotated by its rows' angles: contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype)
    tokens, heads, dim = x.shape
    assert x.stride(2) == 1, x.stride()
    assert rotary.dtype == x.dtype, rotary.dtype
    cpu_loops.rotate(
        tokens, out, x.data_ptr(), rotary, x.stride(0), x.stride(1), heads, dim // 2, -1.0 if back else 1.0
    )
    return out


def _attend(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    paths: PagedPaths,
    scale: float,
    softcap: float | None,
) -> None:
    heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    kernels = _kernels()
    isa = (
        "amx"
        if q.dtype == torch.bfloat16 and dim % PAGE_TOKENS == 0 and has_amx()
        else "vec"
        if dim % 32 == 0
        else "vec16"
    )
    window = paths.window or -1
    schedule = kernels.get_scheduler_metadata(
        len(paths.key_counts),
        heads,
        kv_heads,
        dim,
        paths.key_counts,
        q.dtype,
        paths.query_bounds,
        True,
        window,
        isa,
        False,
        None,
        "auto",
    )
    keys, values = paths.cache(kv_heads, dim).chunk(2, dim=2)
    tokens, repeated = len(k), paths.repeated
    kernels.cpu_attn_reshape_and_cache(k, v, keys, values, paths.slots[:tokens], isa, 1.0, 1.0, "auto")
    if len(repeated):
        again = k.index_select(0, repeated), v.index_select(0, repeated)
        kernels.cpu_attn_reshape_and_cache(*again, keys, values, paths.slots[tokens:], isa, 1.0, 1.0, "auto")
    kernels.cpu_attention_with_kv_cache(
        q,
        keys,
        values,
        out,
        paths.query_bounds,
        paths.key_counts,
        scale,
        True,
        None,
        window,
        paths.page_table,
        softcap or 0.0,
        schedule,
        None,
        None,
        1.0,
        1.0,
        "auto",
    )


def _kernels() -> Any:
    kernels = cpu_kernels()
    assert kernels is not None, "paged_attention_applies says where there are none"
    return kernels
