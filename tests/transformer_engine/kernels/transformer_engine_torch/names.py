"""Enumerations and classes of the compiled module.

Numbers stand here where Transformer Engine's Python calculates with them or stores them. Of all others (attention
layouts, communication overlap) it only needs that the names exist and differ: `NamesOnly` numbers what is asked for.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class DType(IntEnum):
    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


class FP8FwdTensors(IntEnum):
    GEMM1_INPUT = 0
    GEMM1_WEIGHT = 1
    GEMM1_OUTPUT = 2
    GEMM2_INPUT = 3
    GEMM2_WEIGHT = 4
    GEMM2_OUTPUT = 5
    GEMM3_INPUT = 6
    GEMM3_WEIGHT = 7
    GEMM3_OUTPUT = 8


class FP8BwdTensors(IntEnum):
    GRAD_OUTPUT1 = 0
    GRAD_INPUT1 = 1
    GRAD_OUTPUT2 = 2
    GRAD_INPUT2 = 3
    GRAD_OUTPUT3 = 4
    GRAD_INPUT3 = 5


class NVTE_Fused_Attn_Backend(IntEnum):
    NVTE_No_Backend = -1
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


class NamesOnly(type):
    """A class that has every member; members are numbers, counted as they are asked for."""

    def __getattr__(cls, member: str) -> Any:
        if member.startswith("__"):
            raise AttributeError(member)
        setattr(cls, member, len(vars(cls)))
        return getattr(cls, member)
