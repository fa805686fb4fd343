"""Small policies and the selected-row head under several layouts.

    python actor_layouts.py MODELS WORK

MODELS holds one Hugging Face folder per model. Every rank is a process of its own, forked from this one so that the
libraries are imported once. Prints one JSON line with {"policy": ..., "head": ...}, which the tests judge.
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
    found = {"policy": policy_in_layouts.report(models, work, CASES), "head": head_in_layouts.report(work)}
    print("RESULT " + json.dumps(found), flush=True)
