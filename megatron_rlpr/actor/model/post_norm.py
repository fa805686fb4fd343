"""Norms behind attention and feed-forward, before the residual is added (Gemma 2)."""

from __future__ import annotations

from typing import Any

import torch


def with_post_norm(linear: type[torch.nn.Module], norm: Any) -> type[torch.nn.Module]:
    """A row-parallel linear layer that normalises its output: Megatron's layers have no place for such a norm of their
    own.

    norm(config, hidden_size, eps) makes `post_layernorm`. It acts on whole hidden vectors: the linear layer has summed
    over the tensor-parallel ranks by then (and split the sequence, with sequence parallelism).
    """

    class LinearWithPostNorm(linear):  # type: ignore[misc, valid-type]
        def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config, output_size, config.layernorm_epsilon)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            output, bias = super().forward(x)
            return self.post_layernorm(output), bias

    return LinearWithPostNorm
