"""Who computes tree attention: what every backend offers, and the one place that chooses.

A new backend is one file, or a pair for its layout and its attention, and an entry in BACKENDS.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.flex_attention import FlexBackend
from megatron_rlpr.actor.attention.paged_attention import PagedBackend
from megatron_rlpr.packing import Nodes
from megatron_rlpr.types import IntArray

Layout = TypeVar("Layout")


class Backend(Protocol[Layout]):
    """One way to let every token attend to its ancestors and to itself, forward and backward."""

    name: str

    def applies(
        self, dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device
    ) -> bool:
        """Whether it can compute such attention on such a device, if nothing is `missing`.

        windowed: some layers have a sliding window.
        """

    def missing(self) -> str:
        """What this machine lacks for it, as a clause; empty when it lacks nothing."""

    def lay_out(
        self, nodes: Nodes, dtype: torch.dtype, device: torch.device, window: int, rows: IntArray | None
    ) -> Layout:
        """Who sees whom in a forest of T tokens.

        window: how many tokens one sees, itself included; 0: itself and all ancestors. rows: the Q tokens that ask, in
        increasing order; None: all.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, softcap: float | None) -> Tensor:
        """q [Q, H, D], k and v [T, K, D] -> [Q, H, D]; softcap: of the scaled scores."""


Backends = tuple[Backend[Any], ...]
BACKENDS: Backends = (CascadeBackend(), FlexBackend(), PagedBackend(), BlockBackend())
"""The fastest first; the last one always applies."""


@cache
def choose_backend(
    dtype: torch.dtype,
    head_dim: int,
    softcap: float | None,
    windowed: bool,
    device: torch.device,
    backends: Backends = BACKENDS,
) -> Backend[Any]:
    """The first that applies and is here. Its name is logged once, as a warning when a faster one is missing."""
    applying = [backend for backend in backends if backend.applies(dtype, head_dim, softcap, windowed, device)]
    chosen = next(backend for backend in applying if not backend.missing())
    reasons = [
        f"; {faster.name} would be faster, but {faster.missing()}" for faster in applying[: applying.index(chosen)]
    ]
    level = logging.WARNING if reasons else logging.INFO
    logging.getLogger(__name__).log(level, "tree attention is computed by %s%s", chosen.name, "".join(reasons))
    return chosen
