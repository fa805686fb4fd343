"""Products of bf16 matrices as a tensor core computes them: in fp32, rounded once.

PyTorch's own on a CPU do the same, but without an instruction for it a hundred times slower than in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset({torch.mm, torch.bmm})


class Bf16Products(TorchFunctionMode):
    """Inside, `torch.mm` and `torch.bmm` of bf16 matrices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        product: Tensor = func(*(matrix.float() for matrix in args))
        out = (kwargs or {}).get("out")
        return product.bfloat16() if out is None else out.copy_(product)
