"""`cascade_merge.merge` as one kernel, for CUDA; importing this needs triton.

It reads both outputs once and writes one, where plain PyTorch passes over them several times, in two precisions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def fused_merge(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """`merge`, in place: out and more_out [rows, H, D], lse and more_lse fp32 [H, rows]."""
    rows, heads, dim = out.shape
    assert out.is_contiguous()
    assert more_out.is_contiguous()
    assert lse.stride(1) == more_lse.stride(1) == 1
    width = heads * dim
    strides = (lse.stride(0), more_lse.stride(0))
    block = triton.next_power_of_2(width)
    with torch.cuda.device(out.device):
        _merge_rows[(rows,)](out, lse, more_out, more_lse, *strides, width, dim, BLOCK=block, num_warps=8)
    torch.logaddexp(lse, more_lse, out=lse)


@triton.jit
def _merge_rows(  # type: ignore[no-untyped-def]  # the compiler reads annotations as its own
    out, lse, more_out, more_lse, stride, more_stride, width, dim, BLOCK: tl.constexpr
):
    """A program for each row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    head = column // dim
    first = tl.load(lse + head * stride + row, mask=inside, other=0.0)
    second = tl.load(more_lse + head * more_stride + row, mask=inside, other=0.0)
    largest = tl.maximum(first, second)
    kept, added = tl.exp(first - largest), tl.exp(second - largest)
    here = tl.load(out + row * width + column, mask=inside, other=0.0).to(tl.float32)
    there = tl.load(more_out + row * width + column, mask=inside, other=0.0).to(tl.float32)
    merged = (kept * here + added * there) / (kept + added)
    tl.store(out + row * width + column, merged.to(out.dtype.element_ty), mask=inside)
