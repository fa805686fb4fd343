"""Attention to two sets of keys from the attention to each, by their log-sum-exps (plain; `cascade_merge_kernel`).

With l = log(exp(l_1) + exp(l_2)), the output is exp(l_1 - l) o_1 + exp(l_2 - l) o_2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Let out [rows, H, D] and fp32 lse [H, rows] take in what another call saw, in place; computed in fp32.

    A log-sum-exp of -inf in more_lse: that query saw nothing there.
    """
    both = torch.logaddexp(lse, more_lse)
    kept, added = ((part - both).exp().t()[..., None] for part in (lse, more_lse))
    out.copy_(kept * out + added * more_out)
    lse.copy_(both)
