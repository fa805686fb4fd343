"""pass@k: how likely one of k answers to a prompt is right, estimated without bias from n >= k answers.

Chen et al., "Evaluating Large Language Models Trained on Code", 2021: 1 - C(n-c, k) / C(n, k) if c of n are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import fmean


def pass_at_k(n: int, right: int, k: int) -> float:
    """One prompt's estimate. Raises ValueError unless 0 <= right <= n and 1 <= k <= n."""
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {right} right answers among {n}: expected 0 <= right <= n and 1 <= k <= n")
    return 1 - comb(n - right, k) / comb(n, k)


def mean_pass_at_k(n: int, right: Sequence[int]) -> dict[int, float]:
    """k -> mean over the prompts, for 1, the powers of two up to n, and n itself. right: right answers per prompt."""
    wanted = sorted({1, n, *(2**power for power in range(n.bit_length()))})
    return {k: fmean(pass_at_k(n, count, k) for count in right) for k in wanted if k <= n}
