"""Tree attention through vLLM's CPU attention kernel: one call for the whole forest (`paged_layout`).

The kernel uses AMX tiles where there are, knows sliding windows and soft-capping, and keeps scores in the cache of each
core. It has no backward; `block_attention` computes gradients from queries and keys, so nothing else is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_rlpr.actor.attention.block_attention import block_gradients
from megatron_rlpr.actor.attention.paged_layout import PAGE_TOKENS, PagedPaths, paged_paths
from megatron_rlpr.actor.cpu.kernels import cpu_kernels, has_amx
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})


class PagedBackend:
    """On a CPU, for the head sizes that the kernel is compiled for."""

    name = "vLLM's CPU attention kernel"

    def applies(
        self, dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device
    ) -> bool:
        return device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and head_dim in _HEAD_SIZES

    def missing(self) -> str:
        return "" if cpu_kernels() is not None else "no vLLM that is installed here brings it"

    def lay_out(
        self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int = 0, rows: IntArray | None = None
    ) -> PagedPaths:
        return paged_paths(nodes, dtype, window, rows)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: PagedPaths, scale: float, softcap: float | None
    ) -> Tensor:
        return _PagedAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), layout, scale, softcap)


class _PagedAttention(torch.autograd.Function):
    """q [Q, H, D], k and v [T, K, D], all contiguous -> [Q, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, paths: PagedPaths, scale: float, softcap: float | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.constants = (paths, scale, softcap)
        return _attend(q, k, v, paths, scale, softcap)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        paths, scale, softcap = ctx.constants
        tokens, heads, dim = q.shape
        grouped = (tokens, k.shape[1], heads // k.shape[1], dim)
        keys, values = (x.transpose(0, 1).contiguous() for x in (k, v))
        scaled = (q * scale).view(grouped)
        grad_q, grad_k, grad_v = block_gradients(scaled, keys, values, grad_out.reshape(grouped), paths.runs, softcap)
        return grad_q.view(q.shape).mul_(scale), grad_k.transpose(0, 1), grad_v.transpose(0, 1), None, None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, paths: PagedPaths, scale: float, softcap: float | None) -> Tensor:
    out, kernels = torch.empty_like(q), cpu_kernels()
    assert kernels is not None, "PagedBackend.missing says where there are none"
    heads, dim = q.shape[1:]
    tokens, kv_heads = k.shape[:2]
    tiles = q.dtype == torch.bfloat16 and dim % PAGE_TOKENS == 0 and has_amx()
    isa = "amx" if tiles else "vec" if dim % 32 == 0 else "vec16"
    window, counts, bounds = paths.window or -1, paths.key_counts, paths.query_bounds
    no_quantisation = (1.0, 1.0, "auto")
    schedule = kernels.get_scheduler_metadata(
        len(counts), heads, kv_heads, dim, counts, q.dtype, bounds, True, window, isa, False, None, "auto"
    )
    keys, values = paths.cache(kv_heads, dim).chunk(2, dim=2)
    kernels.cpu_attn_reshape_and_cache(k, v, keys, values, paths.slots[:tokens], isa, *no_quantisation)
    if len(paths.repeated):
        again = (x.index_select(0, paths.repeated) for x in (k, v))
        kernels.cpu_attn_reshape_and_cache(*again, keys, values, paths.slots[tokens:], isa, *no_quantisation)
    inputs = (q, keys, values, out, bounds, counts, scale, True, None, window, paths.page_table, softcap or 0.0)
    kernels.cpu_attention_with_kv_cache(*inputs, schedule, None, None, *no_quantisation)
    return out
