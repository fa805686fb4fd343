"""The precisions a model computes in, by the names that configurations and command lines use."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """torch's own name without its module, as in config.json: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
