"""Cut sorted sequences into contiguous runs that fit the token budget, where the least has to be computed again.

Position 0 starts the first run. A run that starts at a computes the prefix of sequence a again, so the cost of a set
of cuts is the sum of `again` at the run starts, plus a fixed price per run. The cheapest set is found exactly, in
O(n): best[b] = min over a of best[a] + price[a], for all a whose run a..b fits, is a minimum over a sliding window.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from megatron_rlpr.types import DoubleArray, IntArray

EVENNESS_STEPS = 5
EVENNESS_PRICE = 1.05


def cut_under_budget(length: IntArray, shared: IntArray, price: DoubleArray, max_tokens: int) -> list[int]:
    """Starts of the cheapest runs with at most max_tokens distinct tokens each; every length must fit.

    length, shared: [n] input tokens and those in common with the predecessor; price: [n] of starting a run there.
    """
    tokens_until = np.cumsum(length - shared)
    # Tokens of run a..b (b included) = tokens_until[b] - before[a]; `before` never decreases.
    before = tokens_until - length
    earliest = np.searchsorted(before, tokens_until - max_tokens, side="left").tolist()
    prices = price.tolist()
    best = 0.0  # of everything before position b
    chosen_start: list[int] = []
    window: deque[tuple[float, int]] = deque()  # (best[a] + price[a], a), ascending in both
    for b, first in enumerate(earliest):
        candidate = best + prices[b]
        while window and window[-1][0] >= candidate:
            window.pop()
        window.append((candidate, b))
        while window[0][1] < first:
            window.popleft()
        best, start = window[0]
        chosen_start.append(start)
    starts = []
    end = len(chosen_start)
    while end > 0:
        end = chosen_start[end - 1]
        starts.append(end)
    return starts[::-1]


def cut_evenly(length: IntArray, shared: IntArray, price: DoubleArray, max_tokens: int) -> list[int]:
    """As `cut_under_budget`, with the largest run as small as no more runs at nearly the same price allow.

    Even micro-batches need less memory at their peak and leave smaller bubbles in a pipeline.
    """
    starts = cut_under_budget(length, shared, price, max_tokens)
    if len(starts) < 2:
        return starts
    allowed = sum(price[starts].tolist()) * EVENNESS_PRICE
    tokens = int((length - shared).sum())
    low, high = max(int(length.max()), tokens // len(starts)), max_tokens
    for _ in range(EVENNESS_STEPS):
        middle = (low + high) // 2
        attempt = cut_under_budget(length, shared, price, middle)
        if len(attempt) <= len(starts) and sum(price[attempt].tolist()) <= allowed:
            starts, high = attempt, middle
        else:
            low = middle
    return starts
