"""One scale for a whole tensor: chosen from past steps (`delayed`) or from the tensor itself (`tensorwise`).

Before compute capability 10 a GEMM reads FP8 matrices along their inner dimension only, so a second copy is kept
transposed; from there on one copy serves both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from transformer_engine_torch.fp8_numbers import as_matrix, decode, encode, largest, scale_of


def one_copy_serves_both() -> bool:
    """Whether this GPU's GEMM reads FP8 in either direction."""
    from transformer_engine.pytorch.utils import is_non_tn_fp8_gemm_supported

    return bool(is_non_tn_fp8_gemm_supported())


def allocate(quantizer: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """An uninitialised tensor for a delayed-scaling quantizer, whose allocation is compiled."""
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor, Float8TensorStorage

    one_copy = one_copy_serves_both()
    rows = torch.empty(shape, dtype=torch.uint8, device=device) if quantizer.rowwise_usage or one_copy else None
    turned = (shape[-1], *shape[:-1])
    columns = (
        torch.empty(turned, dtype=torch.uint8, device=device) if quantizer.columnwise_usage and not one_copy else None
    )
    parts = {
        "data": rows,
        "data_transpose": columns,
        "fp8_scale_inv": torch.ones(1, device=device),
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
    }
    if quantizer.internal:
        return Float8TensorStorage(fake_dtype=dtype, **parts)
    return Float8Tensor(shape=shape, dtype=dtype, requires_grad=False, device=device, **parts)


def delayed_scale(x: Tensor, quantizer: Any) -> Tensor:
    """The scale of past steps [1]; this step's amax joins the history that the next scale comes from."""
    if quantizer.amax.numel():
        seen = quantizer.amax
        seen.copy_(torch.maximum(seen.reshape(-1), _amax(x)).reshape(seen.shape))
    return quantizer.scale.reshape(1).float()


def current_scale(x: Tensor, quantizer: Any) -> Tensor:
    """The scale [1] that fits this tensor (and, where asked, its other shards)."""
    amax = _amax(x)
    if quantizer.with_amax_reduction:
        group = quantizer._canonicalized_amax_reduction_group()
        dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=group)
    return scale_of(amax, largest(quantizer.dtype), quantizer.amax_epsilon, quantizer.force_pow_2_scales)


def fill(output: Any, tensor: Tensor, quantizer: Any, scale: Tensor, store: Any) -> None:
    """Write tensor's bytes, their transpose and 1 / scale into output, by `store(output, attribute, value)`."""
    one_copy = one_copy_serves_both()
    data = encode(as_matrix(tensor).float() * scale, quantizer.dtype)
    store(output, "_scale_inv", 1.0 / scale)
    if quantizer.rowwise_usage or one_copy:
        store(output, "_data", data.view(tensor.shape))
    else:
        output._data = None
    if quantizer.columnwise_usage and not one_copy:
        store(output, "_transpose", data.t().contiguous().view(tensor.shape[-1:] + tensor.shape[:-1]))
    else:
        output._transpose = None
    output._transpose_invalid = output._transpose is None


def matrix(tensor: Any, rowwise: bool) -> Tensor:
    """The fp32 [m, k] that a GEMM reads from the row-wise or the transposed copy."""
    if rowwise or one_copy_serves_both():
        return decode(as_matrix(tensor._data), tensor._fp8_dtype) * tensor._scale_inv
    if tensor._transpose is None or tensor._transpose_invalid:
        raise RuntimeError("a GEMM needs the FP8 transpose, which is missing")
    turned = decode(tensor._transpose, tensor._fp8_dtype).reshape(tensor._transpose.shape[0], -1)
    return (turned * tensor._scale_inv).t()


def _amax(x: Tensor) -> Tensor:
    return x.abs().amax().float().reshape(1) if x.numel() else torch.zeros(1)
