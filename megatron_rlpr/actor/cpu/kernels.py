"""vLLM's compiled CPU kernels (attention over paged keys, RMSNorm), for the policy on a CPU.

They are the kernels the engine computes with, and several times faster than the same work in tensor operations. Where
they are missing (another build of vLLM, another processor) the portable code beside every use computes the same.
"""

from __future__ import annotations

import importlib.util
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

_NEEDED = ("cpu_attention_with_kv_cache", "cpu_attn_reshape_and_cache", "get_scheduler_metadata", "rms_norm")


@cache
def cpu_kernels() -> Any | None:
    """The operators, `torch.ops._C`; None with CUDA and where this machine's vLLM does not bring them.

    Loads the library without importing vllm, whose import reads environment variables that an engine sets first.
    """
    if torch.cuda.is_available():
        return None
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or not vllm.origin:
        return None
    try:
        torch.ops.load_library(str(Path(vllm.origin).with_name(f"{_variant()}.abi3.so")))
    except OSError:  # no such build, or one for CUDA, whose libraries are not here
        return None
    return torch.ops._C if all(hasattr(torch.ops._C, name) for name in _NEEDED) else None


@cache
def has_amx() -> bool:
    """Whether this process may use AMX tiles. Linux grants them on request."""
    return bool(torch.cpu._is_amx_tile_supported()) and bool(torch.cpu._init_amx())


def rounds_bf16() -> bool:
    """Whether the kernels round to bfloat16; those for processors without AVX-512 cut the digits off."""
    return _variant() != "_C_AVX2"


def _variant() -> str:
    """The library that vLLM itself loads on this processor."""
    if platform.machine() != "x86_64" or torch.cpu._is_avx512_bf16_supported():
        return "_C"
    return "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
