"""Which cases the tests generate: RLPR_SEED chooses others, RLPR_CASES how many of them."""

from __future__ import annotations

import os

SEED = int(os.environ.get("RLPR_SEED", "0"))


def case_count(default: int) -> int:
    """RLPR_CASES, or what the test makes by default."""
    return int(os.environ.get("RLPR_CASES", str(default)))
