"""What a whole training promises: its numbers, its engines, its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import STEPS, Workplace, run
from transformers import AutoModelForCausalLM

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.rollout.store import SCHEMA
from megatron_rlpr.tracking.collapse_alarm import CollapseAlarm
from megatron_rlpr.tracking.metric_names import REQUIRED, undocumented
from megatron_rlpr.weights.hf_folder import HfFolder

pytestmark = pytest.mark.e2e


def rollouts(workplace: Workplace, name: str, step: int) -> pd.DataFrame:
    """One row per response of a step."""
    table = pq.read_table(workplace.run_folder(name) / "rollouts" / f"step_{step:06d}.parquet")
    assert table.schema.equals(SCHEMA)
    return table.to_pandas()


def conversion(workplace: Workplace, checkpoint: Path, folder: Path) -> Path:
    """The Hugging Face folder that the command line makes of a run's checkpoint."""
    made = folder / "converted"
    options = [f"--megatron={checkpoint}", f"--out={made}", f"--hf={workplace.folder / 'model'}"]
    status, output = run(
        [sys.executable, "-m", "checkpoint_conversion.megatron_to_hf", *options], folder / "conversion.log"
    )
    assert status == 0, output
    return made


def test_every_step_reports_the_documented_names_and_no_others(workplace: Workplace, undisturbed: str) -> None:
    metrics = workplace.metrics(undisturbed)
    assert [step["step"] for step in metrics] == list(range(1, STEPS + 1))
    for step in metrics:
        assert [name for name in REQUIRED if step.get(name) is None] == []
        assert {
            "think_length/mean",
            "answer_length/max",
            "final_reward_dist/final_reward=0",
            "filter/rate",
            "reasoning/gain",
            "reasoning/length",
            "reasoning/share",
        } <= step.keys()
    for record in (*metrics, *workplace.validations(undisturbed)):
        assert undocumented(record) == []


def test_the_stored_probabilities_of_the_references_tokens_make_its_probability(
    workplace: Workplace, undisturbed: str
) -> None:
    rows = rollouts(workplace, undisturbed, 2)
    spliced = rows[rows.splice_valid]
    assert len(spliced) > 0
    assert rows.reference_tokens[~rows.splice_valid].isna().all()
    for row in spliced.itertuples():
        assert "".join(row.reference_tokens).strip() == row.reference_answer
        assert np.exp(row.reference_log_probs).mean() == pytest.approx(row.reference_probability, rel=1e-5)


def test_the_engines_log_probs_are_the_actors_after_every_hand_over(workplace: Workplace, undisturbed: str) -> None:
    for step in workplace.metrics(undisturbed):
        assert step["rollout/log_prob_gap_max"] < 1e-4
        versions = rollouts(workplace, undisturbed, step["step"]).weight_versions
        assert set(map(tuple, versions)) == {(step["step"] - 1,)}, "a step samples with the weights of the step before"


def test_the_policy_learns_something_and_the_engines_follow(workplace: Workplace, undisturbed: str) -> None:
    assert all(step["actor/grad_norm"] > 0.01 for step in workplace.metrics(undisturbed))
    before, after = workplace.validations(undisturbed)
    assert before["val/val/greedy/reward"] != after["val/val/greedy/reward"]


def test_the_filter_really_drops_groups(workplace: Workplace, undisturbed: str) -> None:
    """Otherwise the comparisons of resumed runs would not cover its state, nor that of the surplus prompts."""
    metrics = workplace.metrics(undisturbed)
    assert metrics[0]["filter/threshold"] == 0
    assert len({step["filter/threshold"] for step in metrics}) == STEPS
    assert min(step["filter/kept_fraction"] for step in metrics) < 1
    assert max(step["filter/rounds"] for step in metrics) > 1
    assert max(step["filter/cached_prompts"] for step in metrics) > 0


def test_stored_rollouts_hold_what_the_metrics_are_made_of(workplace: Workplace, undisturbed: str) -> None:
    for step in workplace.metrics(undisturbed):
        rows = rollouts(workplace, undisturbed, step["step"])
        trained = rows[rows.advantage.notna()]
        assert trained.kept.all()
        assert rows.groupby("group").kept.first().mean() == pytest.approx(step["filter/kept_fraction"])
        for column, metric in (
            ("reward", "mean"),
            ("reference_probability", "reference_probability"),
            ("format", "format"),
        ):
            assert trained[column].mean() == pytest.approx(step[f"reward/{metric}"])
        assert (rows.response_tokens.str.len() == rows.engine_log_probs.str.len()).all()
        gaps = np.abs(np.concatenate(list(trained.engine_log_probs)) - np.concatenate(list(trained.old_log_probs)))
        assert gaps.mean() == pytest.approx(step["rollout/log_prob_gap"], rel=1e-3)


def test_rewards_and_advantages_are_what_their_parts_say(workplace: Workplace, undisturbed: str) -> None:
    rows = rollouts(workplace, undisturbed, 1)
    shaped = np.maximum(rows.reference_probability - rows.base_probability, 0)
    np.testing.assert_allclose(rows.reward, 0.9 * shaped + 0.1 * rows.format + rows.repetition, atol=1e-9)
    assert rows.splice_valid.mean() > 0.3
    assert (rows.reference_probability[~rows.splice_valid] == 0).all()
    groups = rows.groupby("group").reward
    np.testing.assert_allclose(
        rows.advantage, (rows.reward - groups.transform("mean")) / (groups.transform("std") + 1e-6), atol=1e-5
    )


def test_the_summary_compares_the_first_and_the_last_validation(workplace: Workplace, undisturbed: str) -> None:
    summary = json.loads((workplace.run_folder(undisturbed) / "summary.json").read_text())
    validations = workplace.validations(undisturbed)
    assert [record["step"] for record in validations] == [0, STEPS]
    assert (summary["steps"], summary["prompts"], summary["validation_set"], summary["decoding"]) == (
        STEPS,
        16,
        "val",
        "greedy",
    )
    assert summary["wall_time_s"] > 0
    assert 0 < summary["peak_memory_gb"] < 8
    for side, record in zip(("before", "after"), validations, strict=True):
        assert set(summary[side]) == {"reward", "reference_probability", "format", "accuracy"}
        for measure, interval in summary[side].items():
            assert interval["mean"] == pytest.approx(record[f"val/val/greedy/{measure}"])
            assert interval["low"] <= interval["mean"] <= interval["high"]
    for measure, difference in summary["difference"].items():
        assert difference["mean"] == pytest.approx(
            summary["after"][measure]["mean"] - summary["before"][measure]["mean"]
        )
        assert 0 < difference["p_value"] <= 1


def test_a_warning_of_collapsing_reasoning_names_its_step_on_the_console_and_in_the_summary(
    workplace: Workplace, undisturbed: str
) -> None:
    alarm = CollapseAlarm(load_config(["--config", str(workplace.run_folder(undisturbed) / "config.yaml")]).tracking)
    lines = [line for step in workplace.metrics(undisturbed) for line in alarm.watch(step["step"], step)]
    assert lines, "the recipe's bounds are narrow"
    printed = (workplace.folder / f"{undisturbed}.log").read_text().splitlines()
    assert [line for line in printed if line.startswith("warning: step ")] == lines
    summary = json.loads((workplace.run_folder(undisturbed) / "summary.json").read_text())
    assert summary["collapse_warnings"] == alarm.raised


def test_tensorboard_shows_the_numbers_of_metrics_jsonl(workplace: Workplace, undisturbed: str) -> None:
    events = EventAccumulator(str(workplace.run_folder(undisturbed) / "tensorboard")).Reload()
    for name in ("reward/mean", "actor/loss", "actor/grad_norm"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({step["step"]: step[name] for step in workplace.metrics(undisturbed)}, rel=1e-6)


def test_the_resolved_configuration_reads_back(workplace: Workplace, undisturbed: str) -> None:
    config = load_config(["--config", str(workplace.run_folder(undisturbed) / "config.yaml")])
    assert (config.trainer.name, config.rollout.n, config.actor.dtype) == (undisturbed, 4, "float32")


def test_the_newest_checkpoints_are_kept(workplace: Workplace, undisturbed: str) -> None:
    assert workplace.checkpoints(undisturbed) == ["step_000003", "step_000006"]


def test_transformers_loads_the_final_weights_from_beside_the_checkpoint(
    workplace: Workplace, undisturbed: str, tmp_path: Path
) -> None:
    exports = workplace.run_folder(undisturbed) / "hf"
    assert sorted(path.name for path in exports.iterdir()) == ["step_000003", "step_000006"]
    exported = AutoModelForCausalLM.from_pretrained(exports / "step_000006").state_dict()
    final = HfFolder(conversion(workplace, workplace.run_folder(undisturbed) / "checkpoints" / "step_000006", tmp_path))
    assert [name for name in final.stored if not torch.equal(final.read(name), exported[name])] == []
    before = HfFolder(workplace.folder / "model")
    assert any(not torch.equal(before.read(name), exported[name]) for name in final.stored)


def test_vllm_answers_from_the_export_as_it_did_at_the_end_of_the_run(workplace: Workplace, undisturbed: str) -> None:
    """Validating the exported folder, tokenizer and all: greedy answers in fp32 are those of the last validation."""
    name, export = "from_export", workplace.run_folder(undisturbed) / "hf" / "step_000006"
    workplace.train(name, 0, "trainer.val_only=true", f"model.path={export}")
    (record,), last = workplace.validations(name), workplace.validations(undisturbed)[-1]
    for measure in ("reference_probability", "format", "accuracy"):
        assert record[f"val/val/greedy/{measure}"] == pytest.approx(last[f"val/val/greedy/{measure}"], abs=1e-6)


def test_a_step_whose_groups_are_all_dropped_changes_nothing(workplace: Workplace) -> None:
    """The threshold of step 2 is far above any group's spread: nothing to train on, the run goes on."""
    name = "dropped_all"
    overrides = ["filter.std_filter_beta=1000", "filter.max_rounds=2", "data.val_files=[]", "trainer.save_freq=-1"]
    workplace.train(name, 0, *overrides, "trainer.total_training_steps=3")
    assert workplace.checkpoints(name) == []
    first, *others = workplace.metrics(name)
    assert first["actor/grad_norm"] > 0
    for step in others:
        assert (step["filter/kept_fraction"], step["filter/rounds"], step["actor/optimizer_steps"]) == (0, 2, 0)
        assert (step["actor/loss"], step["actor/grad_norm"]) == (None, None)
        assert step["rollout/log_prob_gap_max"] < 1e-4
        assert rollouts(workplace, name, step["step"]).advantage.isna().all()


def test_everything_else_at_once(workplace: Workplace, tmp_path: Path) -> None:
    """Two engines, bf16, an export, a KL to the reference policy in the reward, carried groups, sampling, W&B offline,
    validations."""
    overrides = [
        "actor.dtype=bfloat16",
        "algorithm.adv_estimator=reinforce_plus_plus",
        "algorithm.use_kl_loss=false",
        "algorithm.kl_loss_coef=0.05",
        "algorithm.kl_ctrl_type=adaptive",
        "filter.cache_regenerate=false",
        "evaluation.strategies=[greedy,sampling]",
        "evaluation.n=2",
        "evaluation.max_prompts=5",
        "+trainer.test_freq=1",
        "++trainer.total_training_steps=3",
        "trainer.export_hf=true",
        "tracking.wandb=true",
    ]
    name = "everything"
    status, output = workplace.start(name, 2, *overrides, WANDB_MODE="offline")
    assert status == 0, output[-4000:]
    assert "2 ranks" in output
    metrics = workplace.metrics(name)
    assert len(metrics) == 3
    for step in metrics:
        assert [required for required in REQUIRED if step.get(required) is None] == []
        assert undocumented(step) == []
        assert step["rollout/log_prob_gap"] < 0.1
    validations = workplace.validations(name)
    assert [record["step"] for record in validations] == [0, 1, 2, 3]
    for record in validations:
        assert undocumented(record) == []
        assert {key.split("/")[2] for key in record if key.startswith("val/")} == {"greedy", "sampling"}
        assert record["val_sampling/test_acc/quickstart/sums"] == pytest.approx(record["val/val/sampling/accuracy"])
    summary = json.loads((workplace.run_folder(name) / "summary.json").read_text())
    assert summary["prompts"] == 5
    assert list(summary["other_sets"]) == ["val/sampling"]
    assert list(Path(workplace.run_folder(name)).glob("wandb/offline-run-*/*.wandb"))
    run_folder = workplace.run_folder(name)
    converted = conversion(workplace, run_folder / "checkpoints" / "step_000003", tmp_path)
    exported = run_folder / "hf" / "step_000003"
    assert (converted / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert (converted / "config.json").read_bytes() == (exported / "config.json").read_bytes()
    assert {stored.dtype for stored in HfFolder(exported).stored.values()} == {torch.bfloat16}
