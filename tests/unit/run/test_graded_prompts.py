"""Where a run grades responses, every prompt is asked for its grader before any work."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from training_records import scored

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.run.prompts import training_prompts, validation_sets
from megatron_rlpr.types import UserError

TOKENIZER = load_tokenizer(str(Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"))
TASKS = GradeTasks(SpecialTokens.of(TOKENIZER), "R1")


def file(path: Path, sources: list[str]) -> str:
    rows = [
        {
            "prompt": [{"role": "user", "content": "6*7?"}],
            "data_source": source,
            "reward_model": {"ground_truth": "42"},
        }
        for source in sources
    ]
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config()
    made.data.train_files = [
        file(tmp_path / "known.parquet", ["Math-500"]),
        file(tmp_path / "one.parquet", [*["quickstart/sums"] * 23, "WebInstrct-verified"]),
    ]
    return made


@pytest.mark.parametrize("manager", ["naive", "mix"])
def test_one_unknown_source_of_training_is_found_by_file_and_row(config: Config, manager: str) -> None:
    config.reward.reward_manager = manager
    unknown = (
        r"one\.parquet, row 23: data_source 'WebInstrct-verified' has no grader, did you mean 'WebInstruct-verified'"
    )
    with pytest.raises(UserError, match=unknown):
        training_prompts(config, TOKENIZER, TASKS, [])


@pytest.mark.parametrize("reward_type", ["pr", "pr+vr"])
def test_a_source_without_grader_may_be_trained_on_by_probability(config: Config, reward_type: str) -> None:
    config.reward.reward_manager, config.reward.reward_type = "prob", reward_type
    assert len(training_prompts(config, TOKENIZER, TASKS, [])) == 25


def test_every_validation_prompt_needs_its_grader(config: Config, tmp_path: Path) -> None:
    config.data.val_files = [file(tmp_path / "good.parquet", ["MATH"]), file(tmp_path / "bad.parquet", ["MATH", "x"])]
    with pytest.raises(UserError, match=r"bad\.parquet, row 1: data_source 'x' has no grader"):
        validation_sets(config, TOKENIZER, TASKS)
    config.evaluation.max_prompts = 1
    assert [one.name for one in validation_sets(config, TOKENIZER, TASKS)] == ["good", "bad"]


def test_stored_prompts_are_asked_as_well(config: Config, tmp_path: Path) -> None:
    groups = [scored(index, [0.5], [2], source=source) for index, source in enumerate(["MATH", "x"])]
    write_rollouts(tmp_path / "store", 1, groups, advantages=[[0.0]] * 2, kept=[True] * 2, decode=str)
    config.rollout.replay, config.reward.reward_manager = str(tmp_path / "store"), "naive"
    with pytest.raises(UserError, match=r"^rollout\.replay=.*store, prompt 1: data_source 'x' has no grader"):
        training_prompts(config, TOKENIZER, TASKS, [])


def test_two_validation_files_of_one_name_are_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    config.data.val_files = [file(tmp_path / "val.parquet", ["MATH"]), file(tmp_path / "b" / "val.parquet", ["MATH"])]
    with pytest.raises(UserError, match=r"data\.val_files: 2 files would be the validation set 'val'; rename one"):
        validation_sets(config, TOKENIZER, TASKS)
