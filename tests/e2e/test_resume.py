"""A kill at any point, and the same command again, come to the same run."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from same_run import assert_same_run
from training_runs import STEPS, Workplace, records, run

pytestmark = pytest.mark.e2e


def killed(workplace: Workplace, name: str, ranks: int, happened: Callable[[Path], bool], *overrides: str) -> None:
    """A run that got SIGKILL as soon as happened(its checkpoint folder); tried again if it was faster than the kill."""
    for _ in range(5):
        shutil.rmtree(workplace.run_folder(name), ignore_errors=True)
        folder = workplace.run_folder(name) / "checkpoints"
        if ranks:
            status, _ = workplace.start(name, ranks, *overrides, stop_when=lambda: happened(folder))  # noqa: B023
        else:
            status, _ = workplace.start_warm(name, 0, *overrides, kill_when=lambda: happened(folder))  # noqa: B023
        if status != 0 and happened(folder) and f"step_{STEPS:06d}" not in workplace.checkpoints(name):
            return
    raise AssertionError(f"{name} was never killed in time")


def test_a_run_that_is_asked_to_stop_saves_its_last_step_and_goes_on_as_if_nothing_had_happened(
    workplace: Workplace, undisturbed: str
) -> None:
    """torchrun gets SIGTERM in the second or third step, long before there would be a checkpoint, then SIGINT."""
    folder = workplace.run_folder("stopped")
    for number, first in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        _, output = workplace.start(
            "stopped",
            1,
            "trainer.save_freq=0",
            stop_when=lambda: (folder / f"rollouts/step_{first:06d}.parquet").exists(),  # noqa: B023
            stop_with=number,
        )
        (last_words,) = [line for line in output.splitlines() if line.startswith("stopped by")]
        step = len(workplace.metrics("stopped"))
        assert step >= first
        saved = folder / "checkpoints" / f"step_{step:06d}"
        assert last_words.startswith(f"stopped by {number.name}: step {step} is saved, {saved}; go on with: "), output
        assert workplace.checkpoints("stopped")[-1] == saved.name
    command = shlex.split(last_words.split("go on with: ")[1])
    assert run(command, workplace.folder / "stopped_again.log")[0] == 0
    assert_same_run(workplace, "stopped", undisturbed)
    assert workplace.validations("stopped") == workplace.validations(undisturbed)


@pytest.fixture(scope="module")
def killed_run(workplace: Workplace) -> str:
    """The name of a run whose memory moves to the host and back and whose engines sleep, which the undisturbed one's
    do not. torchrun is killed after the third step's checkpoint, which is written while the fourth step goes on;
    its ranks must not live on."""
    lending = ("actor.offload=all", "rollout.sleep=true", "trainer.async_save=true")
    killed(workplace, "killed", 1, lambda folder: (folder / "step_000003").exists(), *lending)
    # What a kill in the middle of the next checkpoint would leave behind.
    unfinished = workplace.run_folder("killed") / "checkpoints" / ".partial_step_000006" / "megatron"
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / "metadata.json").write_bytes(b"half a checkpoint")
    output = workplace.train("killed", 1, *lending)
    assert f"resumed {workplace.run_folder('killed')}/checkpoints/step_000003" in output
    return "killed"


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    workplace: Workplace, undisturbed: str, killed_run: str
) -> None:
    assert_same_run(workplace, killed_run, undisturbed)
    assert workplace.validations(killed_run) == workplace.validations(undisturbed)
    assert workplace.checkpoints(killed_run) == ["step_000003", "step_000006"]


ROUND = "rollout score restore"
MOVING = f"step( {ROUND} offload)* {ROUND} sleep score update restore hand_over offload wake_weights load wake_cache"
STILL = "step( rollout score)+ score update hand_over load"


def test_memory_moves_between_the_phases_of_a_step_in_the_one_order_that_works(
    workplace: Workplace, undisturbed: str, killed_run: str
) -> None:
    """Of step 5, which neither begins the run nor follows a checkpoint. Rewards are made in between, on the CPU."""
    for name, expected in ((killed_run, MOVING), (undisturbed, STILL)):
        phases = {line["step"]: line["phases"] for line in records(workplace.run_folder(name) / "phases.jsonl")}
        assert list(phases) == list(range(1, STEPS + 1))
        assert re.fullmatch(expected, " ".join(phase for phase in phases[5] if phase != "reward")), phases[5]
    moved, still = workplace.metrics(killed_run)[4], workplace.metrics(undisturbed)[4]
    assert moved["memory/offloaded_gb"] == pytest.approx(moved["memory/restored_gb"]), "what goes comes back"
    assert moved["memory/offloaded_gb"] > moved["memory/released_gb"] > 0
    assert still["memory/offloaded_gb"] == still["memory/released_gb"] == 0


def test_a_replay_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    workplace: Workplace, undisturbed: str, replayed: str
) -> None:
    """It does not track the reasoning gain, as the other does: that changes nothing else."""
    rollouts = f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}"
    replay = (rollouts, "trainer.keep_last=1", "tracking.reasoning_gain=false")
    killed(workplace, "killed_replay", 0, lambda folder: (folder / ".partial_step_000006").exists(), *replay)
    assert workplace.checkpoints("killed_replay") == [".partial_step_000006", "step_000003"]
    output = workplace.train("killed_replay", 0, *replay)
    assert f"resumed {workplace.run_folder('killed_replay')}/checkpoints/step_000003" in output
    assert_same_run(workplace, "killed_replay", replayed, tracked=False)
    assert all("reasoning/gain" not in step for step in workplace.metrics("killed_replay"))
    assert all(math.isfinite(step["reasoning/gain"]) for step in workplace.metrics(replayed))
    assert workplace.checkpoints("killed_replay") == ["step_000006"], (
        "keep_last=1 removes the older one, and nothing unfinished is left"
    )


@pytest.fixture
def copied(workplace: Workplace, undisturbed: str) -> str:
    """The name of a copy of the undisturbed run's folder."""
    shutil.rmtree(workplace.run_folder("copied"), ignore_errors=True)
    shutil.copytree(workplace.run_folder(undisturbed), workplace.run_folder("copied"))
    return "copied"


def test_a_finished_run_is_validated_again_without_training(
    workplace: Workplace, undisturbed: str, copied: str
) -> None:
    workplace.train(copied, 0, "+trainer.val_only=True")
    assert workplace.metrics(copied) == workplace.metrics(undisturbed)
    assert workplace.validations(copied) == workplace.validations(undisturbed), (
        "the same weights, seeds and one line a step"
    )
    assert workplace.checkpoints(copied) == workplace.checkpoints(undisturbed)


def test_a_runs_checkpoint_can_be_the_start_of_another_run(workplace: Workplace, undisturbed: str) -> None:
    weights = workplace.run_folder(undisturbed) / "checkpoints" / f"step_{STEPS:06d}"
    workplace.train("from_checkpoint", 0, "trainer.val_only=true", f"model.megatron_checkpoint={weights}")
    (validation,) = workplace.validations("from_checkpoint")
    trained = workplace.validations(undisturbed)[-1]
    for measure in ("reference_probability", "format", "accuracy", "response_length"):
        assert validation[f"val/val/greedy/{measure}"] == trained[f"val/val/greedy/{measure}"]
    assert validation["step"] == 0
    assert not (workplace.run_folder("from_checkpoint") / "metrics.jsonl").read_text()
