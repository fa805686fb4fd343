"""The spread of the rewards of one group, as every estimator and the std filter measure it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FLAT_STD = 1e-6
"""A group whose std is below this has no signal: all its advantages are 0."""


def group_mean_and_std(rewards: npt.ArrayLike) -> tuple[float, float]:
    """Mean and unbiased standard deviation of rewards [n], float64.

    A group of one has mean 0 and std 1 by definition (the reference's convention), so that its reward is used as it is.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"a group needs a vector of at least one reward, got shape {values.shape}")
    if len(values) == 1:
        return 0.0, 1.0
    return float(values.mean()), float(values.std(ddof=1))
