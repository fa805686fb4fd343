"""How token losses become one number: a weight per sequence, so that loss = sum_i w_i * sum_t loss_it.

The weights come from the lengths of the whole mini-batch, over all data-parallel ranks. The sum can then be split
over micro-batches, ranks and shared prefixes in any way and stays the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_rlpr.types import UserError

AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")


def row_weights(lengths: Sequence[int], mode: str, max_tokens: int) -> npt.NDArray[np.float64]:
    """Weight of every token of each sequence, float64 [len(lengths)].

    lengths: trained tokens of every sequence of the whole mini-batch. max_tokens: the constant that seq-mean-token-sum
    divides by (the longest response allowed), unused otherwise. An empty sequence gets weight 0.

    token-mean: every token counts the same. seq-mean-token-sum: mean over sequences of token sums / max_tokens.
    seq-mean-token-mean: mean over sequences of their token means.
    """
    counts = np.asarray(lengths, dtype=np.float64)
    if counts.size == 0:
        return counts
    filled = counts > 0
    match mode:
        case "token-mean":
            weights = np.full_like(counts, 1.0 / max(counts.sum(), 1.0))
        case "seq-mean-token-sum":
            weights = np.full_like(counts, 1.0 / (counts.size * max_tokens))
        case "seq-mean-token-mean":
            weights = 1.0 / (counts.size * np.maximum(counts, 1.0))
        case _:
            raise UserError(f"algorithm.loss_agg_mode: {mode!r} is unknown, choose one of {', '.join(AGGREGATIONS)}")
    return np.where(filled, weights, 0.0)
