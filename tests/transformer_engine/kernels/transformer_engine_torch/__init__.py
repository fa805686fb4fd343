"""Transformer Engine's compiled module, computed on a CPU in plain PyTorch.

Transformer Engine's own Python (modules, autograd, quantizers, recipes, amax bookkeeping) runs unchanged on top; what
its CUDA kernels do is done here. FP8 is real: bytes are e4m3 and e5m2 numbers, scales are chosen as each recipe says.

names            enumerations and classes
fp8_numbers      bytes, scales, blocks
per_tensor       quantisation by the recipes delayed and tensorwise
blockwise, mxfp8 and by theirs
quantize         all of them under the names that Transformer Engine calls
gemm             matrix products, of experts, too
norms            RMSNorm, LayerNorm
activations      and their gradients
optimizer        Adam and other multi-tensor functions
delayed_scaling  the next step's scales
padding          experts' tokens filled up
fp8_weights      weights kept in FP8, cast from slices of fp32 ones

Not emulated: NVFP4, attention, fused rotation and cross-entropy, communication overlap, permutation of tokens, the
order of a tensor core's additions. A function that is missing raises NotImplementedError with its name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from transformer_engine_torch.activations import ACTIVATIONS
from transformer_engine_torch.delayed_scaling import compute_amax, fused_amax_and_scale_update_after_reduction
from transformer_engine_torch.fp8_weights import (
    fp8_block_scaling_compute_partial_amax,
    fp8_block_scaling_partial_cast,
    mxfp8_scaling_compute_partial_amax,
    mxfp8_scaling_partial_cast,
)
from transformer_engine_torch.gemm import generic_gemm, te_general_grouped_gemm
from transformer_engine_torch.mxfp8 import swizzle_scales_for_gemm_
from transformer_engine_torch.names import (
    DType,
    FP8BwdTensors,
    FP8FwdTensors,
    NamesOnly,
    NVTE_Fused_Attn_Backend,
)
from transformer_engine_torch.norms import layernorm_bwd, layernorm_fwd, rmsnorm_bwd, rmsnorm_bwd_add, rmsnorm_fwd
from transformer_engine_torch.optimizer import (
    multi_tensor_adam,
    multi_tensor_adam_fp8,
    multi_tensor_compute_scale_and_scale_inv,
    multi_tensor_compute_scale_inv_e8m0,
    multi_tensor_l2norm,
    multi_tensor_scale,
    multi_tensor_scale_tensor,
    multi_tensor_unscale_l2norm,
)
from transformer_engine_torch.padding import fused_multi_row_padding, fused_multi_row_unpadding
from transformer_engine_torch.quantize import (
    bgrad_quantize,
    create_empty_quantized_tensor,
    dequantize,
    fp8_transpose,
    quantize,
    split_quantize,
    swap_first_dims,
)

__all__ = [
    "DType",
    "FP8BwdTensors",
    "FP8FwdTensors",
    "NVTE_Fused_Attn_Backend",
    "bgrad_quantize",
    "compute_amax",
    "create_empty_quantized_tensor",
    "dequantize",
    "fp8_block_scaling_compute_partial_amax",
    "fp8_block_scaling_partial_cast",
    "fp8_transpose",
    "fused_amax_and_scale_update_after_reduction",
    "fused_multi_row_padding",
    "fused_multi_row_unpadding",
    "generic_gemm",
    "layernorm_bwd",
    "layernorm_fwd",
    "multi_tensor_adam",
    "multi_tensor_adam_fp8",
    "multi_tensor_compute_scale_and_scale_inv",
    "multi_tensor_compute_scale_inv_e8m0",
    "multi_tensor_l2norm",
    "multi_tensor_scale",
    "multi_tensor_scale_tensor",
    "multi_tensor_unscale_l2norm",
    "mxfp8_scaling_compute_partial_amax",
    "mxfp8_scaling_partial_cast",
    "quantize",
    "rmsnorm_bwd",
    "rmsnorm_bwd_add",
    "rmsnorm_fwd",
    "split_quantize",
    "swap_first_dims",
    "swizzle_scales_for_gemm_",
    "te_general_grouped_gemm",
]

globals().update(ACTIVATIONS)

# What Transformer Engine asks of the libraries below it: those of CUDA 13.
_ANSWERS: dict[str, Any] = {
    "get_cudnn_version": 92400,
    "get_cublasLt_version": 130100,
    "get_num_cublas_streams": 4,
    "get_stream_priority_range": (0, -5),
    "device_supports_multicast": False,
    "ubuf_built_with_mpi": False,
    "is_fp8_supported": True,
}


@cache
def __getattr__(name: str) -> Any:
    """An answer, a class of which only the names matter, or a function that says that it is missing."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _ANSWERS:
        return lambda: _ANSWERS[name]
    return NamesOnly(name, (), {}) if name[0].isupper() else _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"transformer_engine_torch.{name} is not emulated on a CPU")

    return function
