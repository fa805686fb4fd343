"""A user's mistake is one clear line and a non-zero exit, before any work is lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_policy import row, save_model, write_rows
from training_runs import Workplace, run

import pretrain_rlpr

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("overrides", "world_size", "named"),
    [
        (["actor.tensor_paralel_size=2"], 1, "actor.tensor_model_parallel_size"),
        (["data.train_batch_size=eight"], 1, "data.train_batch_size"),
        (["model.path=nowhere"], 1, "nowhere"),
        (["actor.tensor_model_parallel_size=3"], 3, "does not divide the 4 attention heads"),
        (["actor.pipeline_model_parallel_size=2"], 3, "3 processes cannot be divided"),
        (["data.train_files=[missing.parquet]"], 1, "missing.parquet"),
    ],
)
def test_refused_before_anything_starts(
    workplace: Workplace,
    overrides: list[str],
    world_size: int,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("RANK", "0")
    assert pretrain_rlpr.main([*workplace.arguments, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


def without_reward_model(workplace: Workplace, folder: Path) -> list[str]:
    rows = [{key: value for key, value in row(number).items() if key != "reward_model"} for number in range(8)]
    return [f"data.train_files=[{write_rows(folder / 'no_reward_model.parquet', rows)}]"]


def with_an_empty_answer(workplace: Workplace, folder: Path) -> list[str]:
    rows = [row(number) for number in range(8)]
    rows[3]["reward_model"] = {"ground_truth": "", "style": "rule"}
    return [f"data.train_files=[{write_rows(folder / 'empty_answer.parquet', rows)}]"]


def with_a_long_validation_prompt(workplace: Workplace, folder: Path) -> list[str]:
    rows = [row(number) for number in range(8)]
    rows[2]["prompt"] = [{"role": "user", "content": "1+1=? " * 60}]
    return [f"data.val_files=[{write_rows(folder / 'long.parquet', rows)}]"]


def with_an_unknown_source_to_validate_on(workplace: Workplace, folder: Path) -> list[str]:
    rows = [row(number) for number in range(8)]
    rows[5]["data_source"] = "quickstrat/sums"
    return [f"data.val_files=[{write_rows(folder / 'unknown.parquet', rows)}]"]


def with_the_run_folder_of_another_model(workplace: Workplace, folder: Path) -> list[str]:
    return [f"model.path={shallow_model(folder)}", "trainer.name=undisturbed"]


def with_megatron_weights_of_another_model(workplace: Workplace, folder: Path) -> list[str]:
    weights = workplace.run_folder("undisturbed") / "checkpoints" / "step_000006"
    return [f"model.path={shallow_model(folder)}", f"model.megatron_checkpoint={weights}"]


def shallow_model(folder: Path) -> Path:
    return save_model(folder / "shallow", fitted=False, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (without_reward_model, "column 'reward_model' is missing"),
        (with_an_empty_answer, "row 3: reward_model.ground_truth is empty"),
        (with_a_long_validation_prompt, "row 2: the prompt has"),
        (with_an_unknown_source_to_validate_on, "row 5: data_source 'quickstrat/sums' has no grader"),
        (with_the_run_folder_of_another_model, "num_layers=4, expected 2"),
        (with_megatron_weights_of_another_model, "num_layers=4, expected 2"),
    ],
)
def test_refused_with_the_place_of_the_mistake(
    workplace: Workplace, undisturbed: str, mistake: Callable[[Workplace, Path], list[str]], named: str, tmp_path: Path
) -> None:
    status, output = workplace.start_warm("bad", 0, *mistake(workplace, tmp_path))
    assert status == 2, output[-3000:]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert named in errors[0]
    assert "Traceback" not in output


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks_with_one_line(
    workplace: Workplace, undisturbed: str, tmp_path: Path
) -> None:
    """Files may grow to 1 MB, as on a full disk: rollouts and metrics fit, weights do not."""
    replay = [f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}", "trainer.save_freq=2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "pretrain_rlpr.py"]
    limited = ["prlimit", "--fsize=1000000", sys.executable, *torchrun]
    status, output = run([*limited, *workplace.arguments, "trainer.name=limited", *replay], tmp_path / "log")
    assert status != 0
    folder = workplace.run_folder("limited") / "checkpoints"
    (error,) = [line for line in output.splitlines() if line.startswith("error")]
    assert error.startswith(f"error: {folder / '.partial_step_000002'}: "), error
    assert "limit of file sizes (ulimit -f)" in error
    assert "Traceback" not in output.split("torch/distributed/elastic")[0], "torchrun's own apart"
    assert workplace.checkpoints("limited") == []
    assert len(workplace.metrics("limited")) == 2, "what was there stays"


def test_a_long_training_prompt_is_dropped_and_counted(workplace: Workplace, tmp_path: Path) -> None:
    rows = [row(number) for number in range(8)]
    rows[2]["prompt"] = [{"role": "user", "content": "1+1=? " * 60}]
    files = f"data.train_files=[{write_rows(tmp_path / 'long.parquet', rows)}]"
    output = workplace.train(
        "dropped", 0, files, "data.val_files=[]", "trainer.total_training_steps=1", "trainer.save_freq=-1"
    )
    assert "7 training prompts, 1 longer than" in output
    assert len(workplace.metrics("dropped")) == 1


def test_a_run_that_learns_nothing_stops_in_one_line(workplace: Workplace, undisturbed: str, tmp_path: Path) -> None:
    """The squares of its embeddings overflow: norms divide by infinity, and gradients are NaN.

    On stored rollouts, which need no engine.
    """
    model = Path(shutil.copytree(workplace.folder / "model", tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 1e36
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    stored = f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}"
    settings = ("filter.enabled=false", "actor.lr_warmup_steps=0", "trainer.save_freq=1", "trainer.keep_last=9")
    status, output = workplace.start_warm("lost", 0, stored, *settings, f"model.path={model}")
    assert status == 2, output[-3000:]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "step 3: the gradients of the last 3 steps were NaN or infinite" in errors[0]
    assert "Traceback" not in output
    assert workplace.checkpoints("lost") == ["step_000001", "step_000002"]


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(SystemExit) as ended:
        pretrain_rlpr.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "tensor_model_parallel_size" in printed
    assert "peak learning rate" in printed
