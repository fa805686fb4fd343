"""Quantisation of tensors, whatever the recipe, and what belongs to it: transposes, bias gradients, dequantisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transformer_engine_torch import blockwise, mxfp8, per_tensor
from transformer_engine_torch.fp8_numbers import as_matrix, torch_dtype

DELAYED, TENSORWISE = "Float8Quantizer", "Float8CurrentScalingQuantizer"
BLOCKWISE, MXFP8 = "Float8BlockQuantizer", "MXFP8Quantizer"


def create_empty_quantized_tensor(
    quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device, pin_memory: bool = False
) -> Any:
    """An uninitialised quantised tensor, allocated as the quantizer describes it."""
    shape, kind = tuple(shape), type(quantizer).__name__
    if kind == DELAYED:
        return per_tensor.allocate(quantizer, shape, dtype, device)
    if kind == MXFP8:
        mxfp8.check_shape(shape)
    from transformer_engine.pytorch.quantized_tensor import QuantizedTensorStorage

    parts, description = quantizer.alloc_tensors(shape, device=device), quantizer.create_metadata(shape, dtype=dtype)
    return QuantizedTensorStorage.__tensor_unflatten__(parts, description, shape, None)


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop_flag: Tensor | None = None) -> Any:
    """tensor in FP8, in output where given; a set flag leaves output as it is (weights of later micro-batches)."""
    if noop_flag is not None and bool(noop_flag):
        return output
    kind, tensor = type(quantizer).__name__, tensor.detach()
    if output is None:
        output = create_empty_quantized_tensor(quantizer, tensor.shape, tensor.dtype, tensor.device)
    if kind == DELAYED:
        per_tensor.fill(output, tensor, quantizer, per_tensor.delayed_scale(tensor, quantizer), _store)
    elif kind == TENSORWISE:
        per_tensor.fill(output, tensor, quantizer, per_tensor.current_scale(tensor, quantizer), _store)
    elif kind == BLOCKWISE:
        blockwise.fill(output, tensor, quantizer, _store)
    elif kind == MXFP8:
        mxfp8.fill(output, tensor, quantizer, _store)
    else:
        raise NotImplementedError(f"transformer_engine_torch.quantize with a {kind} is not emulated on a CPU")
    return output


def _store(output: Any, attribute: str, value: Tensor) -> None:
    """Into the buffer that is there (others may hold it, too) where it fits, else in its place."""
    there = getattr(output, attribute, None)
    if there is not None and there.shape == value.shape and there.dtype == value.dtype:
        there.copy_(value)
    else:
        setattr(output, attribute, value)


def is_quantized(tensor: Any) -> bool:
    return not isinstance(tensor, Tensor) or hasattr(tensor, "_quantizer")


def matrix(tensor: Any, rowwise: bool) -> Tensor:
    """The logical [m, k] that a GEMM reads: plain tensors as they are; of FP8, fp32 of one of its two copies.

    The copies differ where blocks share a scale.
    """
    if not is_quantized(tensor):
        return as_matrix(tensor)
    kind = type(tensor).__name__
    for name, recipe in (("MXFP8", mxfp8), ("Float8Blockwise", blockwise), ("Float8Tensor", per_tensor)):
        if kind.startswith(name):
            return recipe.matrix(tensor, rowwise)
    raise NotImplementedError(f"a GEMM of a {kind} is not emulated on a CPU")


def dequantize(tensor: Any, dtype: int | torch.dtype) -> Tensor:
    """Only MXFP8's is compiled alone; tensors of the other recipes do it in Transformer Engine's Python on a CPU."""
    if type(tensor).__name__.startswith("MXFP8"):
        return mxfp8.dequantize(tensor, torch_dtype(dtype))
    return tensor.dequantize(dtype=torch_dtype(dtype))


def split_quantize(
    tensor: Tensor, sections: Sequence[int], quantizers: Sequence[Any], disable_bulk_allocation: bool = False
) -> list[Any]:
    """Every expert's rows by its own quantizer."""
    parts = torch.split(tensor, list(sections))
    return [part if q is None else q(part.contiguous()) for part, q in zip(parts, quantizers, strict=True)]


def bgrad_quantize(grad_output: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    """The bias's gradient and the quantised gradient."""
    return as_matrix(grad_output).float().sum(0).to(grad_output.dtype), quantizer(grad_output)


def fp8_transpose(data: Tensor, fp8_dtype: int, out: Tensor | None = None) -> Tensor:
    """Bytes [..., k] -> [k, ...]."""
    result = as_matrix(data).t().contiguous().view(data.shape[-1:] + data.shape[:-1])
    return result if out is None else out.copy_(result)


def swap_first_dims(tensor: Tensor, out: Tensor | None = None) -> Tensor:
    result = tensor.transpose(0, 1).contiguous()
    return result if out is None else out.copy_(result.view(out.shape))
