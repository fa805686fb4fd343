"""The state of a run between two steps: where to go on, what a checkpoint holds, when one is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megatron_rlpr.actor.checkpoint import CheckpointStore, random_state, restore_random_state
from megatron_rlpr.config.loading import resolved
from megatron_rlpr.config.schema import TrainerConfig
from megatron_rlpr.run.parts import RunParts
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.stop_signals import Stopped
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import UserError

_STATE = {
    "step": int,
    **dict.fromkeys(("prompts", "std_filter", "kl_controller", "validation", "random", "config", "fingerprints"), dict),
}


def resume_step(trainer: TrainerConfig, checkpoints: CheckpointStore, console: Console) -> int:
    """The finished step the run goes on after, 0 for a new run: the newest whose checkpoint is whole. Collective.

    Of damaged checkpoints newer than that one the console says what is wrong. UserError when there are damaged ones
    alone, and for trainer.resume=never in a folder with checkpoints, which would mix two runs.
    """

    def found() -> list[int]:
        steps = checkpoints.steps()
        if steps and trainer.resume == "never":
            raise UserError(
                f"trainer.resume=never, but {checkpoints.path(steps[-1])} is a checkpoint of an earlier run: choose "
                "another trainer.name, or set trainer.resume=auto to go on from it"
            )
        return steps

    damaged: list[str] = []
    for step in reversed(first_rank_decides(found)):
        problems = checkpoints.problems(step)
        if not problems:
            for damage in damaged:
                console.message(f"{damage}: going on from step {step}")
            return step
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        damaged.append(f"{checkpoints.path(step)} is damaged ({problems[0]}{more})")
    if damaged:
        raise UserError(f"no checkpoint of the run is whole: {'; '.join(damaged)}; remove them to start again")
    return 0


def stored_state(checkpoints: CheckpointStore, step: int) -> dict[str, Any]:
    """What the checkpoint of a step holds besides weights and optimizer. Raises UserError when it is of another kind.

    Collective: the first rank reads it.
    """
    state = checkpoints.run_state(step)
    faults = [name for name, kind in _STATE.items() if type(state.get(name)) is not kind]
    if faults:
        raise _foreign(checkpoints, step, f"{', '.join(faults)} missing or of a wrong type")
    return state


def _foreign(checkpoints: CheckpointStore, step: int, why: str) -> UserError:
    return UserError(
        f"{checkpoints.path(step)}/run_state.json is not what this version stores ({why}): remove the folder to go on "
        "from an earlier step, or choose another trainer.name"
    )


def resume(parts: RunParts) -> int:
    """Load the checkpoint the run goes on from; returns the last finished step (0: a new run).

    A start that only validates has no use for the state of training, which belongs to prompts that it has not read.
    """
    if not parts.resume_step:
        return 0
    state = stored_state(parts.checkpoints, parts.resume_step)
    try:
        if not parts.config.trainer.val_only:
            parts.prompts.load_state_dict(state["prompts"])
            parts.std_filter.load_state_dict(state["std_filter"])
            parts.kl_controller.load_state_dict(state["kl_controller"])
        parts.validation.load_state_dict(state["validation"])
        if "collapse_alarm" in state:  # a run that began without the alarm goes on, and this is the start it knows
            parts.collapse_alarm.load_state_dict(state["collapse_alarm"])
        restore_random_state(state["random"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise _foreign(parts.checkpoints, parts.resume_step, why) from error
    parts.checkpoints.load(parts.resume_step, parts.policy)
    parts.console.message(f"resumed {parts.checkpoints.path(parts.resume_step)}")
    return int(state["step"])


def save(parts: RunParts, step: int) -> None:
    """Write a checkpoint, and the Hugging Face folder that belongs to it, when this step is one that has one.

    With trainer.async_save the run goes on meanwhile, but after the last step.
    """
    frequency = parts.config.trainer.save_freq
    last = step == parts.total_steps
    if frequency < 0 or not (last or (frequency > 0 and step % frequency == 0)):
        return
    _write(parts, step, _remembered(parts, step)(), in_background=parts.config.trainer.async_save and not last)


def settle(parts: RunParts, wait: bool = False) -> None:
    """Complete the checkpoint that is written meanwhile: if all of it is, or wait for that. Collective."""
    if parts.checkpoints.under_way:
        with parts.clock.phase("checkpoint"):
            parts.checkpoints.settle(wait)


@contextmanager
def saved_when_stopped(parts: RunParts, step: int) -> Iterator[None]:
    """Should the body be abandoned by a signal, write the checkpoint of `step`, the last complete one. Collective.

    What the body has done to prompts and filter until then is no part of it; the policy it has not touched. Raises
    Stopped with what is saved.
    """
    before = _remembered(parts, step)
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.args[0], _kept(parts, step, before)) from stopped


def _kept(parts: RunParts, step: int, state: Callable[[], dict[str, Any]]) -> str:
    """Write what is to be kept when the run stops after `step`; says what that is."""
    if step == 0:
        return "no step was complete, nothing is saved"
    parts.writer.settle()
    if parts.config.trainer.save_freq < 0:
        return f"step {step} is complete, nothing is saved (trainer.save_freq=-1)"
    settle(parts, wait=True)
    if not first_rank_decides(lambda: step in parts.checkpoints.steps()):
        _write(parts, step, state())
    return f"step {step} is saved, {parts.checkpoints.path(step)}"


def _remembered(parts: RunParts, step: int) -> Callable[[], dict[str, Any]]:
    """Makes what a checkpoint after `step` holds beside weights and optimizer; prompts, filter, KL coefficient and
    random state are those of now. The validation's is that of then: one that was broken off is due again."""
    prompts = (parts.prompts if parts.pipeline is None else parts.pipeline).remembered()
    now = {
        "std_filter": parts.std_filter.state_dict(),
        "kl_controller": parts.kl_controller.state_dict(),
        "collapse_alarm": parts.collapse_alarm.state_dict(),
        "random": random_state(),
    }
    return lambda: {
        "step": step,
        "prompts": prompts(),
        **now,
        "validation": parts.validation.state_dict(),
        "config": resolved(parts.config),
        "fingerprints": dict(parts.fingerprints),
    }


def _write(parts: RunParts, step: int, state: dict[str, Any], in_background: bool = False) -> None:
    parts.writer.settle()  # a run that goes on from here does not make these rollouts again
    parts.rollouts.sleep()  # the optimizer comes back to where they have their caches
    with parts.clock.phase("checkpoint"):
        if parts.hf_export is not None:
            parts.hf_export.save(step)  # first: a run that is killed in between makes this step again
        parts.checkpoints.save(step, parts.policy, state, in_background)
