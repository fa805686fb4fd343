"""The reference answer's token log-probabilities -> one number (spec section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from megatron_rlpr.types import FloatArray, UserError

_ADDED_TOKEN_CAP = math.log(0.5)

# Over the log-probabilities of the scored tokens. The first is RLPR's reference probability (arXiv 2506.18254), the
# third the likelihood of the answer, the fourth its geometric mean per token.
AGGREGATIONS: dict[str, Callable[[npt.NDArray[np.float64]], float]] = {
    "mean_exp_log_softmax": lambda x: float(np.exp(x).mean()),
    "mean_log_softmax": lambda x: float(x.mean()),
    "exp_sum_log_softmax": lambda x: math.exp(x.sum()),
    "exp_mean_log_softmax": lambda x: math.exp(x.mean()),
}


def aggregate(log_probs: FloatArray, name: str, *, cap_last: bool = False, bf16_rounding: bool = False) -> float:
    """The score of one answer from its tokens' log-probs [T]; 0 when there are none.

    cap_last limits the last token's probability to 0.5 (gt_tokens_one_more_adjusted). bf16_rounding gives the
    reference's three significant digits. Raises UserError for an unknown name.
    """
    if name not in AGGREGATIONS:
        raise UserError(f"reward.compute_score_name={name!r} is unknown; choose one of {', '.join(AGGREGATIONS)}")
    if len(log_probs) == 0:
        return 0.0
    values = np.asarray(log_probs, dtype=np.float64).copy()
    if cap_last:
        values[-1] = min(values[-1], _ADDED_TOKEN_CAP)
    score = AGGREGATIONS[name](values)
    return round_to_bfloat16(score) if bf16_rounding else score


def round_to_bfloat16(value: float) -> float:
    """The nearest bfloat16, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))
