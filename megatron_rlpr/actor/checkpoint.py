"""Checkpoints of a run: Megatron's torch_dist format plus the trainer's own state, complete or absent.

<folder>/step_000040/          appears by one rename, when everything in it is on disk
    megatron/                  sharded weights and optimizer: load with any TP, PP, DP
    run_state.json             step counter, sampler, filter, random state: whatever the trainer hands over
    model_shape.json           what the weights belong to
    sealed.json                the SHA-256 sum of every file
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_rlpr.actor.checkpoint_share import CheckpointShare
from megatron_rlpr.actor.delayed_scaling import load_scaling_state, sharded_scaling_state
from megatron_rlpr.actor.optimizer_state import load_optimizer_state, sharded_optimizer_state
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.system import disk, sealed_folder
from megatron_rlpr.system.decisions import first_rank_decides, shared_by_ranks
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import hf_manifest
from megatron_rlpr.weights.damage import damage_named
from megatron_rlpr.weights.load_megatron import (
    SHAPE,
    WEIGHTS,
    check_megatron_checkpoint,
    chunks_by_key,
    load_weights_state,
    stored_in_bf16,
    weights_state,
)
from megatron_rlpr.weights.parallel_load import load_in_parallel
from megatron_rlpr.weights.shape import ModelShape

_RUN_STATE = "run_state.json"
_SCALES = "fp8_scaling"
_BYTES_PER_PARAMETER = 12
"""At least: the weight and AdamW's two averages in fp32, or all of them and a weight in bf16."""


class CheckpointStore:
    """The checkpoints of one run folder. All ranks call `save`, `settle` and `load` together."""

    def __init__(self, folder: Path, shape: ModelShape, keep_last: int) -> None:
        self._folders = StepFolders(folder, keep_last=keep_last)
        self._shape = shape
        self._under_way: tuple[int, CheckpointShare] | None = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return self._folders.steps()

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is."""
        return self._folders.path(step)

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint is being written that `settle` has not completed yet."""
        return self._under_way is not None

    def save(self, step: int, policy: MegatronPolicy, run_state: dict[str, Any], in_background: bool = False) -> Path:
        """Write the checkpoint of `step`, after the one that is under way; returns where it is, or will be.

        Then those beyond keep_last are removed. run_state must be JSON-serialisable. in_background: return as soon as
        everything is copied to the host; the policy may be trained on, and `settle` completes the checkpoint.
        """
        self.settle()
        policy.memory.restore()
        first_rank_decides(lambda: self._begin(step, run_state))
        with self._writing(step):
            entries = checkpoint_entries(policy, is_loading=False)
            entries[_SCALES] = sharded_scaling_state(policy.chunks)
            share = CheckpointShare(entries, self._folders.unfinished(step) / WEIGHTS, in_background)
        self._under_way = step, share
        if not in_background:
            self.settle()
        return self.path(step)

    def settle(self, wait: bool = True) -> None:
        """Complete the checkpoint that is under way, if any: seal it, give it its name, remove old ones. Collective.

        wait=False: only if every rank has written its part by now. What one could not write is raised here, on all
        ranks, and leaves nothing behind.
        """
        if self._under_way is None:
            return
        step, share = self._under_way
        if not (wait or _all_ranks(share.written)):
            return
        self._under_way = None
        with self._writing(step):
            sums = share.finish()
        first_rank_decides(lambda: self._finish(step, sums))

    def set_aside_after(self, step: int) -> None:
        """Let later checkpoints, which are damaged, be none any more; one rank calls this."""
        self._folders.set_aside_after(step)

    def require_room(self) -> None:
        """UserError unless there is room for one more checkpoint: as much as the newest takes, or is to be expected."""
        steps = self.steps()
        if steps:
            expected = disk.size(self.path(steps[-1]))
        else:
            expected = _BYTES_PER_PARAMETER * sum(math.prod(shape) for shape in hf_manifest(self._shape).values())
        disk.require_room(self.path(0).parent, expected, "a checkpoint")

    def _begin(self, step: int, run_state: dict[str, Any]) -> None:
        """Write what is not Megatron's."""
        with self._folders.writing(step):
            self.require_room()
            unfinished = self._folders.begin(step)
            (unfinished / WEIGHTS).mkdir(parents=True)
            (unfinished / SHAPE).write_text(json.dumps(asdict(self._shape)))
            (unfinished / _RUN_STATE).write_text(json.dumps(run_state))

    def _finish(self, step: int, sums: dict[str, str]) -> Path:
        """sums: of the files that the ranks have written; the others are small."""
        unfinished = self._folders.unfinished(step)
        with self._folders.writing(step):
            for name in sums:
                if not (unfinished / name).is_file():
                    raise UserError(
                        f"{unfinished / name} was written by another rank and is not here: trainer.runs_dir must be a "
                        "folder that all machines share"
                    )
            others = [name for name in sealed_folder.files(unfinished) if name not in sums]
            all_sums = sums | {name: sealed_folder.sha256(unfinished / name) for name in others}
            sealed_folder.seal(unfinished, {"step": step}, dict(sorted(all_sums.items())))
            return self._folders.finish(step)

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Around what all ranks write: whatever went wrong on any of them, the first removes the rest of it and says
        why; torch's exception is no Exception."""
        unfinished, first = self._folders.unfinished(step), dist.get_rank() == 0
        with self._folders.writing(step) if first else nullcontext():
            try:
                yield
            except CheckpointException as error:
                if first:
                    raise RuntimeError(f"{unfinished} could not be written: {error}") from error
                raise UserError(f"{unfinished} could not be written; the first rank says why") from error

    def problems(self, step: int) -> list[str]:
        """What speaks against trusting the checkpoint of `step`, by its seal and all sums. Every file is read once, by
        one of the ranks."""
        path = self.path(step)

        def sealed() -> dict[str, str]:
            sums = sealed_folder.sealed_sums(path)
            if not {SHAPE, _RUN_STATE} <= sums.keys():
                raise UserError(f"{sealed_folder.SEAL} is of something else")
            return sums

        try:
            sums = first_rank_decides(sealed)
        except UserError as error:
            return [str(error)]
        return [found for found in shared_by_ranks(partial(sealed_folder.problem, path), list(sums.items())) if found]

    def run_state(self, step: int) -> dict[str, Any]:
        """What `save` was given. Raises UserError for a checkpoint of another model."""

        def read() -> dict[str, Any]:
            check_megatron_checkpoint(self._shape, self.path(step))
            path = self.path(step) / _RUN_STATE
            try:
                return dict(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"{path} holds no state of a run ({error}): {self._fix(step)}") from error

        return first_rank_decides(read)

    def load(self, step: int, policy: MegatronPolicy) -> None:
        """Load weights and optimizer of `step` into the policy (any layout). UserError when they cannot be read."""
        policy.memory.restore()
        path = self.path(step) / WEIGHTS
        with damage_named(self.path(step), self._fix(step)):
            wanted = checkpoint_entries(policy, is_loading=True)
            wanted[_SCALES] = sharded_scaling_state(policy.chunks, stored_in=path)
        state = load_in_parallel(wanted, path, self.path(step), self._fix(step))
        for key, chunk in chunks_by_key(policy.chunks).items():
            load_weights_state(chunk, state[key], path)
        load_scaling_state(policy.chunks, state.get(_SCALES, {}))  # Megatron drops empty ones
        if policy.optimizer is not None:
            load_optimizer_state(policy.optimizer, state)
            policy.masters_changed()

    def _fix(self, step: int) -> str:
        earlier = [s for s in self.steps() if s < step]
        return f"remove the folder to {f'go on from step {earlier[-1]}' if earlier else 'start again'}"


def checkpoint_entries(policy: MegatronPolicy, is_loading: bool) -> dict[str, Any]:
    """Weights and optimizer as Megatron's sharded entries of a checkpoint."""
    model = {key: weights_state(chunk) for key, chunk in chunks_by_key(policy.chunks).items()}
    entries: dict[str, Any] = {key: stored_in_bf16(state) for key, state in model.items()}
    if policy.optimizer is not None:
        entries |= sharded_optimizer_state(policy.optimizer, model, is_loading)
    return entries


def _all_ranks(true_here: bool) -> bool:
    """Whether it is true on every rank. Collective."""
    smallest = torch.tensor(int(true_here))
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return bool(smallest)


def random_state() -> dict[str, Any]:
    """The random state of this process that steps depend on, JSON-serialisable."""
    return {"torch": torch.get_rng_state().tolist()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
