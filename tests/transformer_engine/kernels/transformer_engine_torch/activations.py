"""Activations: NAME(x, quantizer), dNAME(grad, x, quantizer) and dbias_dNAME, which also sums the bias's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_engine_torch.fp8_numbers import as_matrix
from transformer_engine_torch.norms import emit

Pointwise = Callable[[Tensor], Tensor]

_POINTWISE: dict[str, Pointwise] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "srelu": lambda x: F.relu(x).square(),
    "qgelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_GATES: dict[str, Pointwise] = {
    "glu": torch.sigmoid,
    "geglu": _POINTWISE["gelu"],
    "reglu": F.relu,
    "swiglu": F.silu,
    "sreglu": _POINTWISE["srelu"],
    "qgeglu": _POINTWISE["qgelu"],
}


def gated(gate: Pointwise) -> Pointwise:
    """[..., 2 f] -> gate(first half) * second half."""

    def apply(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return gate(first) * second

    return apply


def kernels_of(name: str, function: Pointwise) -> dict[str, Callable[..., Any]]:
    """The three functions of one activation, in fp32 inside."""

    def forward(x: Tensor, quantizer: Any = None) -> Any:
        return emit(function(x.float()), None, quantizer, x.dtype)

    def slope(grad: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().float().requires_grad_()
            (dx,) = torch.autograd.grad(function(leaf), leaf, grad.float())
        return dx

    def backward(grad: Tensor, x: Tensor, quantizer: Any = None) -> Any:
        return emit(slope(grad, x), None, quantizer, x.dtype)

    def bias_backward(grad: Tensor, x: Tensor, quantizer: Any = None) -> tuple[Tensor, Any]:
        dx = slope(grad, x).to(x.dtype)
        return as_matrix(dx).float().sum(0).to(x.dtype), emit(dx, None, quantizer, x.dtype)

    return {name: forward, f"d{name}": backward, f"dbias_d{name}": bias_backward}


ACTIVATIONS: dict[str, Callable[..., Any]] = {}
for _name, _function in (_POINTWISE | {name: gated(gate) for name, gate in _GATES.items()}).items():
    ACTIVATIONS |= kernels_of(_name, _function)
