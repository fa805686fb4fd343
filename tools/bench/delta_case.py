"""`bench delta`: what `weights.delta` would send after every step of a run whose Hugging Face folders were kept.

Weights are rounded to the dtype that an actor in it would hand over; every code is applied to the step before, and must
give the next one's bits.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.delta_code import apply_difference, difference
from megatron_rlpr.weights.hf_folder import HfFolder
from tools.bench.measure import timed


def run(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """One row a step. folder: runs/<name>/hf of a run with trainer.export_hf=true and trainer.save_freq=1."""
    steps = StepFolders(folder)
    pairs = list(pairwise(steps.steps()))
    if not pairs:
        raise UserError(f"{folder}: expected the folders of two steps or more; train with trainer.export_hf=true")
    points = [
        {"steps": f"{first} to {second}"} | _between(HfFolder(steps.path(first)), HfFolder(steps.path(second)), dtype)
        for first, second in pairs
    ]
    return {"folder": str(folder), "points": points}


def _between(first: HfFolder, second: HfFolder, dtype: torch.dtype) -> dict[str, Any]:
    changed = weights = sent = whole = coding = applying = 0.0
    for name in second.shapes():
        before, after = (model.read(name).to(dtype) for model in (first, second))
        (code, differing), seconds = timed(partial(difference, before, after))
        coding += seconds
        if code is not None:
            _, seconds = timed(partial(apply_difference, before, code))
            applying += seconds
            if not torch.equal(before, after):
                raise ValueError(f"{name}: the code does not lead from {first.path} to {second.path}")
        changed, weights = changed + differing, weights + after.numel()
        sent, whole = sent + (after if code is None else code).nbytes, whole + after.nbytes
    return {
        "delta_density": changed / weights,
        "mb_sent": sent / 1e6,
        "share_of_bytes": sent / whole,
        "seconds_coding": coding,
        "seconds_applying": applying,
    }
