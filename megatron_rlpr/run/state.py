"""The state of a run between two steps: where to go on, what a checkpoint holds, when one is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_rlpr.actor.checkpoint import CheckpointStore, random_state, restore_random_state
from megatron_rlpr.config.schema import TrainerConfig
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.stop_signals import Stopped
from megatron_rlpr.types import UserError


def resume_step(trainer: TrainerConfig, checkpoints: CheckpointStore) -> int:
    """The finished step the run goes on after, 0 for a new run. Collective: the first rank looks.

    trainer.resume=never in a folder with checkpoints would mix two runs, so it is refused, and so is a checkpoint of
    another model.
    """

    def newest() -> int:
        steps = checkpoints.steps()
        if not steps:
            return 0
        if trainer.resume == "never":
            raise UserError(
                f"trainer.resume=never, but {checkpoints.path(steps[-1])} is a checkpoint of an earlier run: choose "
                "another trainer.name, or set trainer.resume=auto to go on from it"
            )
        checkpoints.check(steps[-1])
        return steps[-1]

    return first_rank_decides(newest)


def resume(parts: RunParts) -> int:
    """Load the checkpoint the run goes on from; returns the last finished step (0: a new run)."""
    if not parts.resume_step:
        return 0
    state = parts.checkpoints.load(parts.resume_step, parts.policy)
    parts.prompts.load_state_dict(state["prompts"])
    parts.std_filter.load_state_dict(state["std_filter"])
    parts.kl_controller.load_state_dict(state["kl_controller"])
    parts.validation.load_state_dict(state["validation"])
    restore_random_state(state["random"])
    parts.console.message(f"resumed {parts.checkpoints.path(parts.resume_step)}")
    return int(state["step"])


def save(parts: RunParts, step: int) -> None:
    """Write a checkpoint, and the Hugging Face folder that belongs to it, when this step is one that has one."""
    frequency = parts.config.trainer.save_freq
    last = step == parts.total_steps
    if frequency < 0 or not (last or (frequency > 0 and step % frequency == 0)):
        return
    _write(parts, step, _state(parts, step))


@contextmanager
def saved_when_stopped(parts: RunParts, step: int) -> Iterator[None]:
    """Should the body be abandoned by a signal, write the checkpoint of `step`, the last complete one. Collective.

    What the body has done to prompts and filter until then is no part of it; the policy it has not touched. Raises
    Stopped with what is saved.
    """
    before = copy.deepcopy(_state(parts, step))
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.args[0], _kept(parts, step, before)) from stopped


def _kept(parts: RunParts, step: int, state: dict[str, Any]) -> str:
    """Write what is to be kept when the run stops after `step`; says what that is."""
    if step == 0:
        return "no step was complete, nothing is saved"
    if parts.config.trainer.save_freq < 0:
        return f"step {step} is complete, nothing is saved (trainer.save_freq=-1)"
    if not first_rank_decides(lambda: step in parts.checkpoints.steps()):
        _write(parts, step, {**state, "validation": parts.validation.state_dict()})  # it may be due again
    return f"step {step} is saved, {parts.checkpoints.path(step)}"


def _state(parts: RunParts, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` holds beside weights and optimizer."""
    return {
        "step": step,
        "prompts": (parts.prompts if parts.pipeline is None else parts.pipeline).state_dict(),
        "std_filter": parts.std_filter.state_dict(),
        "kl_controller": parts.kl_controller.state_dict(),
        "validation": parts.validation.state_dict(),
        "random": random_state(),
    }


def _write(parts: RunParts, step: int, state: dict[str, Any]) -> None:
    with parts.clock.phase("checkpoint"):
        if parts.hf_export is not None:
            parts.hf_export.save(step)  # first: a run that is killed in between makes this step again
        parts.checkpoints.save(step, parts.policy, state)
