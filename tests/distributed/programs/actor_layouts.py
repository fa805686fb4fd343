"""Small policies, dense and with experts, and the selected-row head under several layouts.

    python actor_layouts.py MODELS WORK

MODELS/dense and MODELS/experts hold one Hugging Face folder per model. Every rank is a process of its own, forked from
this one so that the libraries are imported once. The two kinds run side by side: ranks wait for each other most of the
time. Prints one JSON line with {"policy": {kind: {layout: {model: what the first rank saw}}}, "head": ...}, which the
tests judge.
"""

from __future__ import annotations

import json
import sys
from multiprocessing import get_context
from pathlib import Path

if __name__ == "__main__":
    import head_in_layouts
    import policy_in_layouts
    from layout_cases import CASES

    models, work = Path(sys.argv[1]), Path(sys.argv[2])
    fork = get_context("fork")
    kinds = [
        fork.Process(target=policy_in_layouts.report, args=(models / kind, work / kind, CASES[kind])) for kind in CASES
    ]
    for kind in kinds:
        kind.start()
    for kind in kinds:
        kind.join()
        assert kind.exitcode == 0, "its error stands above"
    policy = {kind: policy_in_layouts.found(work / kind, cases) for kind, cases in CASES.items()}
    print("RESULT " + json.dumps({"policy": policy, "head": head_in_layouts.report(work)}), flush=True)
