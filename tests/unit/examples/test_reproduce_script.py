"""reproduce.sh turns the environment that users of the reference know into one torchrun command, or says what is
missing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_rlpr.config.loading import load_config

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "scalable_rl" / "reproduce.sh"
OWN_DATA = ("data.train_files=[mine.parquet]", "data.val_files=[held_out.parquet]")
SCRIPT_VARIABLES = ("MODEL", "RECIPE", "NNODES", "RANK", "MASTER_ADDR", "MASTER_PORT", "GPUS_PER_NODE", "DRY_RUN")


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SCRIPT_VARIABLES}
    wanted = {"GPUS_PER_NODE": "8", "DRY_RUN": "1", **environment}
    return subprocess.run([str(SCRIPT), *arguments], env=inherited | wanted, cwd="/", capture_output=True, text=True)


def command(*arguments: str, **environment: str) -> list[str]:
    done = start(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def refusal(*arguments: str, **environment: str) -> str:
    done = start(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("reproduce.sh: ")
    assert done.stderr.count("\n") == 1, "one line"
    return done.stderr


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that looks like Qwen2.5-7B's."""
    return folder(tmp_path, "Qwen2.5-7B")


def folder(parent: Path, name: str) -> str:
    path = parent / name
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return str(path)


def test_one_machine_runs_one_process_per_gpu(model: str) -> None:
    launcher, *options = command(*OWN_DATA, MODEL=model)
    assert launcher.endswith("torchrun")
    assert options[: options.index("pretrain_rlpr.py")] == [
        *("--nnodes", "1", "--node-rank", "0", "--nproc-per-node", "8"),
        *("--master-addr", "127.0.0.1", "--master-port", "29500"),
    ]


def test_several_machines_meet_at_the_master(model: str) -> None:
    options = command(
        *OWN_DATA, MODEL=model, NNODES="4", RANK="3", MASTER_ADDR="10.0.0.1", MASTER_PORT="6379", GPUS_PER_NODE="4"
    )
    assert options[1 : options.index("pretrain_rlpr.py")] == [
        *("--nnodes", "4", "--node-rank", "3", "--nproc-per-node", "4"),
        *("--master-addr", "10.0.0.1", "--master-port", "6379"),
    ]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("Qwen2.5-7B", "qwen2.5-7b"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("gemma-2-2b-it", "gemma-2-2b-it"),
        ("Qwen2.5-72B", "qwen2.5-72b"),
        ("Llama-3.1-70B-Instruct", "llama-3.1-70b-instruct"),
        ("Qwen3-30B-A3B", "qwen3-30b-a3b"),
    ],
)
def test_the_recipe_follows_from_the_model_s_name(tmp_path: Path, name: str, recipe: str) -> None:
    # Only the folder's own name counts, not those above it.
    path = folder(tmp_path / "llama_qwen_gemma", name)
    options = command(*OWN_DATA, MODEL=path + "/")
    assert options[options.index("--config") + 1] == f"examples/recipes/{recipe}.yaml"
    assert f"model.path={path}" in options


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is nvidia-smi, which is asked first")
def test_a_small_model_runs_on_one_process_without_gpu(tmp_path: Path) -> None:
    options = command(*OWN_DATA, MODEL=folder(tmp_path, "smollm2-135m"), GPUS_PER_NODE="")
    assert options[options.index("--nproc-per-node") + 1] == "1"
    recipe = options[options.index("--config") + 1]
    assert load_config(["--config", str(ROOT / recipe)]).actor.dtype == "float32"


def test_a_validation_alone_needs_no_training_file(model: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  train_files: [datasets/train/no_such_training.parquet]\n")
    assert command("+trainer.val_only=True", MODEL=model, RECIPE=str(recipe))
    assert "no_such_training" in refusal("+trainer.val_only=False", MODEL=model, RECIPE=str(recipe))


def test_the_recipe_can_be_named(tmp_path: Path) -> None:
    path = folder(tmp_path, "mine")
    assert "no qwen, llama or gemma in it" in refusal(*OWN_DATA, MODEL=path)
    options = command(*OWN_DATA, MODEL=path, RECIPE="examples/quickstart/config.yaml")
    assert options[options.index("--config") + 1] == "examples/quickstart/config.yaml"
    assert "RECIPE=none.yaml: there is no such file" in refusal(*OWN_DATA, MODEL=path, RECIPE="none.yaml")


def test_further_arguments_are_overrides_and_the_trainer_understands_them(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*OWN_DATA, "+trainer.val_only=True", "trainer.name=a run with spaces"]
    options = command(*overrides, MODEL=model)
    assert options[-len(overrides) :] == overrides
    monkeypatch.chdir(ROOT)
    config = load_config(options[options.index("pretrain_rlpr.py") + 1 :])
    assert config.trainer.val_only
    assert config.trainer.name == "a run with spaces"
    assert config.model.path == model
    assert config.data.val_files == ["held_out.parquet"]
    assert config.data.train_batch_size == 768


def test_a_missing_model_is_one_line_that_says_how_to_get_it() -> None:
    assert "MODEL=models/Qwen2.5-1000B is no Hugging Face folder" in refusal(*OWN_DATA, MODEL="Qwen2.5-1000B")
    assert "python -m tools.fetch_model" in refusal(*OWN_DATA, MODEL="/no/such/Qwen2.5-7B")


def test_a_missing_data_file_is_one_line_that_names_it(model: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data:\n  train_files: [datasets/train/no_such_training.parquet]\n  val_files: "
        "[datasets/test/no_such_set_Avg2.parquet]\n"
    )
    train, val = OWN_DATA
    assert "no file datasets/train/no_such_training.parquet" in refusal(MODEL=model, RECIPE=str(recipe))
    assert "no file datasets/train/no_such_training.parquet" in refusal(val, MODEL=model, RECIPE=str(recipe))
    assert "no file datasets/test/no_such_set_Avg2.parquet" in refusal("+" + train, MODEL=model, RECIPE=str(recipe))
    assert command(train, val, MODEL=model, RECIPE=str(recipe))


@pytest.mark.parametrize("stem", ["qwen2.5-7b", "llama-3.1-8b-instruct", "gemma-2-2b-it"])
def test_the_script_finds_every_data_file_that_a_recipe_names(stem: str) -> None:
    # The same pattern as in the script: a recipe may not hide a file from it.
    recipe = ROOT / "examples" / "recipes" / f"{stem}.yaml"
    config = load_config(["--config", str(recipe)])
    for kind, files in (("train", config.data.train_files), ("test", config.data.val_files)):
        found = subprocess.run(
            ["grep", "-o", rf"datasets/{kind}/[^],[:space:]]*\.parquet", str(recipe)], capture_output=True, text=True
        )
        assert found.stdout.split() == files


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NNODES": "two"}, "NNODES=two: expected the number of machines"),
        (
            {"NNODES": "2", "RANK": "2", "MASTER_ADDR": "10.0.0.1"},
            "RANK=2: expected this machine's number, 0 to 1 with NNODES=2",
        ),
        ({"NNODES": "2", "RANK": "0"}, "NNODES=2 needs MASTER_ADDR"),
        ({"GPUS_PER_NODE": "none"}, "GPUS_PER_NODE=8"),
    ],
)
def test_a_wrong_layout_is_one_line(model: str, environment: dict[str, str], message: str) -> None:
    assert message in refusal(*OWN_DATA, MODEL=model, **environment)
