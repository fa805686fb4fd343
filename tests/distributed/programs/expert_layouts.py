"""Small mixtures of experts under several layouts.

    python expert_layouts.py MODELS WORK

As actor_layouts.py; prints one JSON line {layout: {model: what the first rank saw}}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import policy_in_layouts
    from layout_cases import EXPERT_CASES

    print(
        "RESULT " + json.dumps(policy_in_layouts.report(Path(sys.argv[1]), Path(sys.argv[2]), EXPERT_CASES)), flush=True
    )
