"""The FP8 recipes as Transformer Engine's objects, and what tests measure of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import te_on_cpu
import torch
import transformer_engine.pytorch as te
from torch import Tensor
from transformer_engine.common import recipe as te_recipes

RECIPES = {
    "delayed": te_recipes.DelayedScaling,
    "tensorwise": te_recipes.Float8CurrentScaling,
    "blockwise": te_recipes.Float8BlockScaling,
    "mxfp8": te_recipes.MXFP8BlockScaling,
}
FORMATS = {"e4m3": te_recipes.Format.E4M3, "hybrid": te_recipes.Format.HYBRID}


def in_fp8(recipe: str, fp8: str = "hybrid") -> AbstractContextManager[None]:
    """Linear layers inside compute in FP8, on the GPU that the recipe needs."""
    te_on_cpu.pretend_gpu(recipe)
    return te.autocast(enabled=True, recipe=RECIPES[recipe](fp8_format=FORMATS[fp8]))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """In the Frobenius norm."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def with_gradients(function: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """function(x), the gradient of x, and those of the parameters, for the same random gradient of the output."""
    for parameter in parameters:
        parameter.grad = None
    leaf = x.detach().clone().requires_grad_()
    y = function(leaf)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype))
    return [y.detach(), leaf.grad, *(parameter.grad.clone() for parameter in parameters)]
