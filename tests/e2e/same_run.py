"""Two runs that must be one and the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from training_runs import Workplace


def stored_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer of a checkpoint, by name."""
    state: dict[str, Any] = {}
    _load_state_dict(
        state, FileSystemReader(checkpoint / "megatron"), planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    return dict(_flat("", state))


def _flat(prefix: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(prefix, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for key, entry in inner for pair in _flat(f"{prefix}/{key}", entry)]


def run_state(checkpoint: Path) -> dict[str, Any]:
    """What the trainer stored besides weights and optimizer, times and settings apart."""
    state = json.loads((checkpoint / "run_state.json").read_text())
    del state["validation"]["elapsed_s"], state["config"]
    return state


def assert_same_run(workplace: Workplace, name: str, other: str, *, tracked: bool = True) -> None:
    """Metrics, rollouts, weights, optimizer and the trainer's state, bit for bit; tracked=False: apart from what
    tracking.reasoning_gain adds."""
    added = () if tracked else ("reasoning/gain", "reasoning/probability_without")
    ours, others = (
        [{key: value for key, value in step.items() if key not in added} for step in workplace.timeless(run)]
        for run in (name, other)
    )
    assert ours == others
    for step in range(1, workplace.steps + 1):
        file = f"rollouts/step_{step:06d}.parquet"
        assert pq.read_table(workplace.run_folder(name) / file).equals(
            pq.read_table(workplace.run_folder(other) / file)
        ), file
    last, others_last = (
        workplace.run_folder(run) / "checkpoints" / f"step_{workplace.steps:06d}" for run in (name, other)
    )
    state, others_state = run_state(last), run_state(others_last)
    if not tracked:
        del state["collapse_alarm"], others_state["collapse_alarm"]
    assert state == others_state
    tensors, expected = stored_tensors(last), stored_tensors(others_last)
    assert tensors.keys() == expected.keys()
    assert any("exp_avg" in tensor for tensor in tensors), "the optimizer is part of it"
    assert [key for key in tensors if not torch.equal(tensors[key], expected[key])] == []
