"""Checkpoints of a run: Megatron's torch_dist format plus the trainer's own state, complete or absent.

<folder>/step_000040/          appears by one rename, when everything in it is on disk
    megatron/                  sharded weights and optimizer: load with any TP, PP, DP
    run_state.json             step counter, sampler, filter, random state: whatever the trainer hands over
    model_shape.json           what the weights belong to
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_rlpr.actor.optimizer_state import load_optimizer_state, sharded_optimizer_state
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.load_megatron import check_megatron_checkpoint, damage_named
from megatron_rlpr.weights.shape import ModelShape

_NAME = re.compile(r"step_(\d{6,})")
# How a distributed optimizer is stored; Megatron's default can no longer be written, the others not be loaded in
# another layout.
_SHARDED_OPTIMIZER = {"distrib_optim_sharding_type": "fully_reshardable"}


class CheckpointStore:
    """The checkpoints of one run folder. All ranks call `save` and `load` together."""

    def __init__(self, folder: Path, shape: ModelShape, keep_last: int) -> None:
        self._folder = folder
        self._shape = shape
        self._keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(m.group(1)) for m in (_NAME.fullmatch(p.name) for p in self._folder.iterdir()) if m)

    def path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}"

    def save(self, step: int, policy: MegatronPolicy, run_state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, then remove those beyond keep_last. run_state must be JSON-serialisable."""
        target = self.path(step)
        partial = self._folder / f".partial_{target.name}"
        if _is_first_rank():
            for unfinished in self._folder.glob(".partial_*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            (partial / "megatron").mkdir(parents=True)
        dist.barrier()
        _collect_write_results_here()
        dist_checkpointing.save(_sharded_state(policy, is_loading=False), str(partial / "megatron"))
        if _is_first_rank():
            _write_json(partial / "model_shape.json", asdict(self._shape))
            _write_json(partial / "run_state.json", run_state)
            _sync_tree(partial)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            _sync_directory(self._folder)
            for old in self.steps()[: -self._keep_last] if self._keep_last > 0 else []:
                shutil.rmtree(self.path(old))
        dist.barrier()
        return target

    def check(self, step: int) -> None:
        """Raise UserError unless the checkpoint of `step` is whole, as far as its small files tell, and of this run's
        model."""
        check_megatron_checkpoint(self._shape, self.path(step))
        self._run_state(step)

    def load(self, step: int, policy: MegatronPolicy) -> dict[str, Any]:
        """Load weights and optimizer of `step` into the policy (any layout); returns the run state.

        Raises UserError for a checkpoint of another model and for a damaged one.
        """
        self.check(step)
        with damage_named(self.path(step), self._fix(step)):
            state = dist_checkpointing.load(_sharded_state(policy, is_loading=True), str(self.path(step) / "megatron"))
        policy.model.load_state_dict(state["model"])
        if policy.optimizer is not None:
            load_optimizer_state(policy.optimizer, state)
        return self._run_state(step)

    def _run_state(self, step: int) -> dict[str, Any]:
        path = self.path(step) / "run_state.json"
        try:
            state: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): {self._fix(step)}") from error
        return state

    def _fix(self, step: int) -> str:
        earlier = [s for s in self.steps() if s < step]
        return f"remove the folder to {f'go on from step {earlier[-1]}' if earlier else 'start again'}"


def _sharded_state(policy: MegatronPolicy, is_loading: bool) -> dict[str, Any]:
    model = policy.model.sharded_state_dict()
    state: dict[str, Any] = {"model": model}
    if policy.optimizer is not None:
        state |= sharded_optimizer_state(policy.optimizer, model, is_loading, _SHARDED_OPTIMIZER)
    return state


def _collect_write_results_here() -> None:
    """Keep Megatron from starting a manager process in every rank to collect its writers' results.

    It is made for asynchronous writers. Ours are synchronous, and that process imports torch (seconds, 250 MB), lives
    as long as the run, and would outlive a rank that is killed.
    """
    filesystem_async._results_queue = queue.Queue()


def random_state() -> dict[str, Any]:
    """The random state of this process that steps depend on, JSON-serialisable."""
    return {"torch": torch.get_rng_state().tolist()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))


def _is_first_rank() -> bool:
    return dist.get_rank() == 0


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _sync_tree(folder: Path) -> None:
    """Force every file below folder to disk, so that the rename cannot arrive before the contents."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
