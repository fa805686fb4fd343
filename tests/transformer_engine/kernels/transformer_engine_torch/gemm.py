"""Matrix products: operands dequantised, multiplied in fp32 and rounded once to the output's type.

A GPU adds in another order, and Hopper's FP8 tensor cores in fewer digits between promotions; neither is emulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transformer_engine_torch.fp8_numbers import torch_dtype
from transformer_engine_torch.quantize import is_quantized, matrix, quantize


def generic_gemm(
    A: Any,
    transa: bool,
    B: Any,
    transb: bool,
    out: Any,
    quantizer: Any,
    out_dtype: int | torch.dtype | None,
    bias: Tensor | None,
    bias_dtype: int | torch.dtype,
    gelu: bool,
    gelu_in: Tensor | None,
    grad: bool,
    workspace: Tensor | None,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
) -> tuple[Any, Tensor | None, Tensor | None, Any]:
    """op(B) @ op(A) of row-major matrices, where a weight A [out, in] is transposed (transa).

    With grad, bias tells that the sum of B over its rows (the bias's gradient) is wanted, else it is added.
    """
    if comm_overlap is not None or gelu:
        raise NotImplementedError("communication overlap and a fused GELU of a GEMM are not emulated on a CPU")
    a, b = matrix(A, rowwise=transa).float(), matrix(B, rowwise=not transb).float()
    shape = (b.shape[1], a.shape[1]) if transb else (*B.size()[:-1], a.shape[0] if transa else a.shape[1])
    result = (b.t() if transb else b) @ (a.t() if transa else a) * alpha
    bias_gradient = None
    if bias is not None and bias.numel():
        if grad:
            bias_gradient = b.sum(0).to(torch_dtype(bias_dtype))
        else:
            result = result + bias.float()
    result = result.reshape(shape)
    if out is not None and not is_quantized(out):
        out.copy_(out.float() + result.view(out.shape) if accumulate else result.view(out.shape))
        result = out
    else:
        result = result.to(A.dtype if out_dtype is None else torch_dtype(out_dtype))
    if quantizer is not None:
        result = quantize(result, quantizer, out if is_quantized(out) and out is not None else None)
    return result, bias_gradient, gelu_in, extra_output


def te_general_grouped_gemm(
    A: Sequence[Any],
    transa: bool,
    B: Sequence[Any],
    transb: bool,
    out: Sequence[Tensor],
    out_dtype: int,
    m_splits: Sequence[int],
    bias: Sequence[Tensor],
    bias_dtype: int,
    single_output: bool,
    pre_gelu_out: Sequence[Tensor] | None,
    grad: bool,
    workspaces: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    math_sm_count: int = 0,
) -> Sequence[Tensor]:
    """One product for every expert; outputs are the parts of out[0], or out."""
    if any(t is not None and t.numel() for t in pre_gelu_out or ()):
        raise NotImplementedError("a fused GELU of a grouped GEMM is not emulated on a CPU")
    outs = torch.split(out[0].view(-1, out[0].shape[-1]), list(m_splits)) if single_output else out
    for i, (a, b, o) in enumerate(zip(A, B, outs, strict=True)):
        if not o.numel():
            continue
        if not torch.Size(b.size()).numel():  # an expert without tokens
            if not accumulate:
                o.zero_()
            continue
        of_bias = (bias[i] if bias else None, bias_dtype)
        rest = (False, None, grad, None, 0, accumulate, use_split_accumulator)
        _, gradient, _, _ = generic_gemm(a, transa, b, transb, o, None, o.dtype, *of_bias, *rest)
        if gradient is not None:
            bias[i].copy_(gradient)
    return bias
