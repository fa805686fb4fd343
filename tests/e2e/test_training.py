"""What a whole training promises: engine equals actor, layouts change nothing, a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_runs import STEPS, Workplace

from megatron_rlpr.tracking.metric_names import REQUIRED, undocumented

pytestmark = pytest.mark.e2e

LAYOUTS = {
    "one": (1, []),
    "tp2": (2, ["actor.tensor_model_parallel_size=2"]),
    "tp2_sp": (2, ["actor.tensor_model_parallel_size=2", "actor.sequence_parallel=true"]),
    "pp2": (2, ["actor.pipeline_model_parallel_size=2"]),
    "dp2": (2, []),
    "tp2_pp2": (4, ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"]),
}
MEASURED = ("time/", "tokens/s", "memory/")


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers that do not depend on the machine."""
    return [{name: value for name, value in step.items() if not name.startswith(MEASURED)} for step in metrics]


def test_every_step_reports_the_documented_names(workplace: Workplace, undisturbed: str) -> None:
    metrics = workplace.metrics(undisturbed)
    assert [step["step"] for step in metrics] == list(range(1, STEPS + 1))
    for step in metrics:
        assert set(REQUIRED) <= set(step)
        assert undocumented(step) == []


def test_the_engines_log_probs_are_the_actors_after_every_hand_over(workplace: Workplace, undisturbed: str) -> None:
    assert max(step["rollout/log_prob_gap_max"] for step in workplace.metrics(undisturbed)) < 1e-4


def test_the_filter_really_drops_groups(workplace: Workplace, undisturbed: str) -> None:
    """Otherwise the comparisons below would not cover its state."""
    metrics = workplace.metrics(undisturbed)
    assert min(step["filter/kept_fraction"] for step in metrics) < 1
    assert metrics[-1]["filter/threshold"] > 0


def test_a_run_leaves_its_numbers_behind(workplace: Workplace, undisturbed: str) -> None:
    folder = workplace.run_folder(undisturbed)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert set(summary["before"]) == {"reward", "reference_probability", "format", "accuracy"}
    assert summary["after"]["reward"]["low"] <= summary["after"]["reward"]["mean"] <= summary["after"]["reward"]["high"]
    assert len(list((folder / "rollouts").glob("step_*.parquet"))) == STEPS
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "config.yaml").is_file()


def test_old_checkpoints_are_removed(workplace: Workplace, undisturbed: str) -> None:
    names = sorted(path.name for path in (workplace.run_folder(undisturbed) / "checkpoints").iterdir())
    assert names == ["step_000003", "step_000006"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_train_alike_on_the_same_rollouts(workplace: Workplace, undisturbed: str, layout: str) -> None:
    ranks, keys = LAYOUTS[layout]
    rollouts = workplace.run_folder(undisturbed) / "rollouts"
    workplace.train(layout, ranks, f"rollout.replay={rollouts}", "trainer.save_freq=-1", *keys)
    for step, expected in zip(workplace.metrics(layout), workplace.metrics(undisturbed), strict=True):
        for name in ("actor/loss", "actor/grad_norm", "reward/mean", "filter/threshold"):
            assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (layout, step["step"], name)


def kill_and_resume(workplace: Workplace, name: str, *overrides: str) -> None:
    """Kill the run as soon as the third step's checkpoint is there, then start the same command again."""
    third = workplace.run_folder(name) / "checkpoints" / "step_000003"
    status, _ = workplace.start(name, 1, "trainer.save_freq=1", *overrides, stop_when=third.exists)
    assert status != 0, "the run ended before it was killed"
    # What a kill in the middle of the next checkpoint would leave behind.
    unfinished = third.parent / ".partial_step_000004" / "megatron"
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / "common.pt").write_bytes(b"half a checkpoint")
    output = workplace.train(name, 1, "trainer.save_freq=1", *overrides)
    assert "resumed" in output


def test_a_killed_run_goes_on_as_if_nothing_had_happened(workplace: Workplace, undisturbed: str) -> None:
    kill_and_resume(workplace, "killed")
    assert timeless(workplace.metrics("killed")) == timeless(workplace.metrics(undisturbed))
    assert validation(workplace.run_folder("killed")) == validation(workplace.run_folder(undisturbed))


def test_a_killed_replay_goes_on_as_if_nothing_had_happened(workplace: Workplace, undisturbed: str) -> None:
    replay = f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}"
    workplace.train("replayed", 1, replay)
    kill_and_resume(workplace, "killed_replay", replay)
    assert timeless(workplace.metrics("killed_replay")) == timeless(workplace.metrics("replayed"))


def test_a_finished_run_is_validated_again_without_training(workplace: Workplace, undisturbed: str) -> None:
    before = workplace.metrics(undisturbed)
    workplace.train(undisturbed, 1, "+trainer.val_only=True")
    assert workplace.metrics(undisturbed) == before


def validation(folder: Path) -> list[str]:
    return (folder / "validation.jsonl").read_text().splitlines()
