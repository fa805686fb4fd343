"""How the final rewards of a batch are spread (metric family final_reward_dist, spec section 6.6)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BINS = 10


def final_reward_distribution(rewards: Iterable[float]) -> dict[str, float]:
    """Share of rewards below 0, exactly 0, in each tenth of (0, 1), exactly 1 and above 1; empty without rewards.

    A tenth holds its lower edge but not its upper one. Comparisons are in float32, the precision rewards are recorded
    in.
    """
    values = np.array(list(rewards), dtype=np.float32)
    if not len(values):
        return {}
    shares = {"<0": values < 0, "=0": values == 0}
    inside = (values > 0) & (values < 1)
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        shares[f"_in_{low:.1f}_to_{high:.1f}"] = inside & (values >= np.float32(low)) & (values < np.float32(high))
    shares["=1"] = values == 1
    shares[">1"] = values > 1
    return {f"final_reward_dist/final_reward{name}": float(hits.mean()) for name, hits in shares.items()}
