"""What may be made of the reference answer's log-probs, to be compared as judges of a response.

The first is RLPR's reference probability. Mean log-prob and geometric mean order responses alike, and so do sum
log-prob and sequence probability: a monotone function changes no area.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.types import DoubleArray, FloatArray

MEAN_PROBABILITY = "mean probability"
LESS_BASE = "mean probability - base"
SEQUENCE_PROBABILITY = "sequence probability"
RULE_GRADE = "rule grade"
ANSWER_LENGTH, RESPONSE_LENGTH = "short reference", "short response"

OF_LOG_PROBS: dict[str, Callable[[FloatArray], float]] = {
    MEAN_PROBABILITY: lambda x: aggregate(x, "mean_exp_log_softmax"),
    LESS_BASE: lambda x: aggregate(x, "mean_exp_log_softmax"),  # `measure` subtracts the base
    "mean log-prob": lambda x: aggregate(x, "mean_log_softmax"),
    "sum log-prob": lambda x: float(x.astype(np.float64).sum()),
    "geometric mean": lambda x: aggregate(x, "exp_mean_log_softmax"),
    SEQUENCE_PROBABILITY: lambda x: aggregate(x, "exp_sum_log_softmax"),
    "min token probability": lambda x: float(np.exp(x.astype(np.float64).min())),
}
"""Of log-probs [T], T > 0, of the reference answer's tokens."""


def measures(log_probs: list[FloatArray], base_log_probs: list[FloatArray]) -> dict[str, DoubleArray]:
    """Every measure of every response, [N] each. Both lists have one entry a response."""
    found = {name: np.array([of(x) for x in log_probs]) for name, of in OF_LOG_PROBS.items()}
    found[LESS_BASE] -= np.array([OF_LOG_PROBS[MEAN_PROBABILITY](x) for x in base_log_probs])
    return found


def lengths(log_probs: list[FloatArray], responses: list[int]) -> dict[str, DoubleArray]:
    """The control: what only knows how long the reference answer is, or the response, in tokens; shorter is higher."""
    return {
        ANSWER_LENGTH: -np.array([len(x) for x in log_probs], dtype=np.float64),
        RESPONSE_LENGTH: -np.array(responses, dtype=np.float64),
    }
