"""Small policies, dense and with experts, and the selected-row head under several layouts.

    python actor_layouts.py MODELS WORK

MODELS/dense and MODELS/experts hold one Hugging Face folder per model. Every rank is a process of its own, forked from
this one so that the libraries are imported once. Prints one JSON line with {"policy": {kind: {layout: {model: what the
first rank saw}}}, "head": ...}, which the tests judge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import head_in_layouts
    import policy_in_layouts
    from layout_cases import CASES

    models, work = Path(sys.argv[1]), Path(sys.argv[2])
    policy = {kind: policy_in_layouts.report(models / kind, work / kind, cases) for kind, cases in CASES.items()}
    print("RESULT " + json.dumps({"policy": policy, "head": head_in_layouts.report(work)}), flush=True)
