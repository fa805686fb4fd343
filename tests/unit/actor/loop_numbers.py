"""Prints a digest of what each compiled loop makes of the same numbers; `reversed` runs the loops in reversed order."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch

from megatron_rlpr.actor.cpu import loops

ROWS, WIDTH, HEADS = 64, 332, 2


def cases() -> dict[str, tuple[Any, ...]]:
    """The arguments after the number of rows, by the loop's name."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, of_rows = noise(ROWS, HEADS, WIDTH), noise(4, ROWS)
    return {
        "gated_silu": (noise(ROWS, 2 * WIDTH), noise(ROWS, WIDTH), WIDTH),
        "gated_silu_gradient": (noise(ROWS, 2 * WIDTH), noise(ROWS, WIDTH), noise(ROWS, 2 * WIDTH), WIDTH),
        "rms_norm_gradient": (*noise(2, ROWS, WIDTH), noise(WIDTH), noise(ROWS, WIDTH), noise(1, WIDTH), WIDTH, 1e-5),
        "attention_gradient": (*noise(2, ROWS, WIDTH), noise(ROWS, 7), noise(ROWS, 5), ROWS, WIDTH, 7, 5),
        "head_sums": (noise(ROWS, WIDTH), of_rows[:3].abs(), WIDTH, 1.4),
        "head_gradient": (noise(ROWS, WIDTH), of_rows, torch.arange(-1, ROWS - 1), WIDTH, 1.4),
        "rotate": (noise(ROWS * HEADS, WIDTH), x, noise(ROWS, WIDTH), *x.stride()[:2], HEADS, WIDTH // 2, -1.0),
    }


def main() -> None:
    torch.set_num_threads(1)
    given = cases()
    for name in sorted(given, reverse="reversed" in sys.argv):
        getattr(loops, name)(ROWS, *given[name])
        tensors = [argument for argument in given[name] if isinstance(argument, torch.Tensor)]
        assert all(tensor.isfinite().all() for tensor in tensors), name
        print(name, hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest())


if __name__ == "__main__":
    main()
