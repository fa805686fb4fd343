"""PyTorch's variable-length flash attention on a CPU, in fp32: what the CUDA kernels do, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass
class VarlenKernel:
    """calls: (forward or backward, its keys, whether a deterministic one was asked for)."""

    calls: list[tuple[str, Tensor, bool]] = field(default_factory=list)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        longest_query: int,
        longest_keys: int,
        dropout: float,
        causal: bool,
        debug_mask: bool,
        *,
        scale: float,
        **unused: Any,
    ) -> tuple[Tensor, ...]:
        """Queries without keys get 0 and, as flash attention 2 has it, a log-sum-exp of +inf."""
        assert not dropout
        assert not debug_mask
        self.calls.append(("forward", k, torch.are_deterministic_algorithms_enabled()))
        out = torch.zeros(q.shape, dtype=torch.float32)
        lse = torch.full((q.shape[1], len(q)), torch.inf)
        for queries, keys in _segments(q, k, query_bounds, key_bounds, longest_query, longest_keys):
            scores = _scores(q[queries], k[keys], causal, scale)
            lse[:, queries] = scores.logsumexp(-1).flatten(0, 1)
            out[queries] = torch.einsum("kgqs,skd->qkgd", scores.softmax(-1), v[keys].float()).flatten(1, 2)
        unset = torch.empty(0)
        return out.to(q.dtype), lse, unset, unset, unset

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        longest_query: int,
        longest_keys: int,
        dropout: float,
        causal: bool,
        random_state: Tensor,
        unused: Tensor,
        *,
        scale: float,
        **unused_options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert lse.is_contiguous()
        assert lse.shape == (q.shape[1], len(q))
        self.calls.append(("backward", k, torch.are_deterministic_algorithms_enabled()))
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (q, k, v))
        grouped = (k.shape[1], -1)
        delta = (grad_out.float() * out.float()).sum(-1).unflatten(1, grouped)
        for queries, keys in _segments(q, k, query_bounds, key_bounds, longest_query, longest_keys):
            scores = _scores(q[queries], k[keys], causal, scale)
            weights = (scores - lse[:, queries].unflatten(0, grouped)[..., None]).exp()
            grad = grad_out[queries].float().unflatten(1, grouped)
            grad_weights = torch.einsum("qkgd,skd->kgqs", grad, v[keys].float())
            grad_scores = scale * weights * (grad_weights - delta[queries].permute(1, 2, 0)[..., None])
            grad_q[queries] = torch.einsum("kgqs,skd->qkgd", grad_scores, k[keys].float()).flatten(1, 2)
            grad_k[keys] = torch.einsum("kgqs,qkgd->skd", grad_scores, q[queries].float().unflatten(1, grouped))
            grad_v[keys] = torch.einsum("kgqs,qkgd->skd", weights, grad)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


@contextmanager
def varlen_on_cpu() -> Iterator[VarlenKernel]:
    """PyTorch's operators have this implementation for CPU tensors until the end."""
    kernel = VarlenKernel()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", kernel.forward, "CPU")
        library.impl("_flash_attention_backward", kernel.backward, "CPU")
        yield kernel


def _segments(
    q: Tensor, k: Tensor, query_bounds: Tensor, key_bounds: Tensor, longest_query: int, longest_keys: int
) -> Iterator[tuple[slice, slice]]:
    """Those with queries and keys. The kernels take these conditions for granted, so they are checked here."""
    for x, bounds, longest in ((q, query_bounds, longest_query), (k, key_bounds, longest_keys)):
        assert x.stride(-1) == 1
        assert bounds.dtype == torch.int32
        assert bounds.is_contiguous()
        assert (bounds[0], bounds[-1]) == (0, len(x))
        assert bounds.diff().min() >= 0
        assert bounds.diff().max() <= longest
    assert len(query_bounds) == len(key_bounds)
    # With one query at most per segment, the CUDA kernel takes every segment to have one, if heads are grouped.
    assert longest_query > 1 or len(q) == len(query_bounds) - 1
    for queries, keys in zip(pairwise(query_bounds.tolist()), pairwise(key_bounds.tolist()), strict=True):
        if queries[0] < queries[1] and keys[0] < keys[1]:
            yield slice(*queries), slice(*keys)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """[K, g, queries, keys]; the causal mask is aligned at the bottom right."""
    scores = torch.einsum("qkgd,skd->kgqs", q.float().unflatten(1, (k.shape[1], -1)), k.float()) * scale
    hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(1 + len(k) - len(q))
    return scores.masked_fill(hidden, -torch.inf) if causal else scores
