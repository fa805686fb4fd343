"""A second start goes on with the run in its folder, or is refused in one line and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from generated_runs import STEPS, make_place, replay, write_stored
from safetensors.torch import load_file, save_file
from same_run import assert_same_run
from tiny_policy import row, write_rows
from training_runs import Workplace
from warm_start import start as start_warm

from checkpoint_conversion.megatron_to_hf import convert
from megatron_rlpr.config.loading import load_config
from megatron_rlpr.system import sealed_folder
from megatron_rlpr.types import UserError

pytestmark = pytest.mark.e2e
LAST, BEFORE = f"step_{STEPS:06d}", f"step_{STEPS - 1:06d}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A finished run of one rank, "whole", and another model, other rollouts and other questions beside its own."""
    place = make_place(tmp_path_factory.mktemp("going_on"), 0)
    write_stored(place.folder / "other_rollouts", 1)
    (place.folder / "other").mkdir()
    write_rows(place.folder / "other" / "val.parquet", [row(number) for number in range(3, 6)])
    shutil.copytree(place.folder / "model", place.folder / "other_model")
    shutil.copytree(place.folder / "model", place.folder / "moved_model")
    weights = place.folder / "other_model" / "model.safetensors"
    changed = load_file(weights)
    next(iter(changed.values()))[0] += 1
    save_file(changed, weights, {"format": "pt"})
    return place


def arguments(place: Workplace, name: str, *overrides: str) -> list[str]:
    validation = f"data.val_files=[{place.folder / 'val.parquet'}]"
    return [
        *replay(place),
        validation,
        "trainer.save_freq=1",
        "reward.base_probability=none",
        f"trainer.name={name}",
        *overrides,
    ]


def start(place: Workplace, name: str, *overrides: str) -> tuple[int, str]:
    """Exit status and output of a run of one rank."""
    log = place.folder / f"{name}.log"
    numba_cache = {"NUMBA_CACHE_DIR": str(place.folder / "numba")}
    return start_warm("pretrain_rlpr.py", arguments(place, name, *overrides), log, 1, numba_cache).end()


@pytest.fixture(scope="module")
def whole(place: Workplace) -> str:
    for name in ("warm", "whole"):  # the first one compiles the loops
        status, output = start(place, name)
        assert status == 0, output[-4000:]
    return "whole"


@pytest.fixture
def copied(place: Workplace, whole: str) -> Path:
    """The folder of a copy of it."""
    shutil.rmtree(place.run_folder("copied"), ignore_errors=True)
    shutil.copytree(place.run_folder(whole), place.run_folder("copied"))
    return place.run_folder("copied")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def reseal(checkpoint: Path) -> None:
    sums = {name: sealed_folder.sha256(checkpoint / name) for name in sealed_folder.files(checkpoint)}
    sealed_folder.seal(checkpoint, {}, sums)


def test_a_flipped_bit_in_the_newest_weights_costs_a_step_and_no_number(
    place: Workplace, copied: Path, whole: str
) -> None:
    """With the model in another folder, which plays no part."""
    checkpoints = copied / "checkpoints"
    flip_a_bit(next((checkpoints / LAST / "megatron").glob("*.distcp")))
    status, output = start(place, "copied", f"model.path={place.folder / 'moved_model'}", "trainer.keep_last=1")
    assert status == 0, output[-4000:]
    said = f"{checkpoints / LAST} is damaged (megatron/"
    assert [
        line.endswith(f"has changed): going on from step {STEPS - 1}") for line in output.splitlines() if said in line
    ]
    assert f"resumed {checkpoints / BEFORE}" in output
    assert place.checkpoints("copied") == [f"damaged_{LAST}", LAST]
    assert_same_run(place, "copied", whole)


def test_damaged_weights_are_not_exported(place: Workplace, copied: Path, tmp_path: Path) -> None:
    flip_a_bit(next((copied / "checkpoints" / LAST / "megatron").glob("*.distcp")))
    with pytest.raises(UserError, match=r"distcp is damaged, its checksum"):
        convert(copied / "checkpoints" / LAST, tmp_path / "out", place.folder / "model")
    assert not (tmp_path / "out").exists()


def foreign_state(content: str) -> Callable[[Path], None]:
    def written(checkpoints: Path) -> None:
        (checkpoints / LAST / "run_state.json").write_text(content)
        reseal(checkpoints / LAST)

    return written


def all_flipped(checkpoints: Path) -> None:
    for checkpoint in checkpoints.iterdir():
        flip_a_bit(checkpoint / "megatron" / ".metadata")


def flipped_before(checkpoints: Path) -> None:
    flip_a_bit(next((checkpoints / BEFORE / "megatron").glob("*.distcp")))


def nothing(_: Path) -> None:
    """The run is whole."""


@pytest.mark.parametrize(
    ("damage", "overrides", "named"),
    [
        (nothing, ["trainer.resume=never"], ["trainer.resume=never", LAST, "choose another trainer.name"]),
        (nothing, [f"trainer.total_training_steps={STEPS - 1}"], [f"already at step {STEPS}", "val_only"]),
        (nothing, ["actor.lr=0.5", "trainer.seed=9"], ["actor.lr was 0.0001, is 0.5; trainer.seed was 2, is 9"]),
        (nothing, ["model.path={folder}/other_model"], ["other content", "has: model."]),
        (nothing, ["rollout.replay={folder}/other_rollouts"], ["other content", "the prompts of train"]),
        (nothing, ["data.val_files=[{folder}/other/val.parquet]"], ["other content", "the prompts of val_val"]),
        (
            flipped_before,
            [f"model.megatron_checkpoint={{folder}}/runs/copied/checkpoints/{BEFORE}"],
            ["model.megatron_checkpoint=", "distcp has changed since it was written"],
        ),
        (
            all_flipped,
            [],
            ["no checkpoint of the run is whole", f"{BEFORE} is damaged (megatron/.metadata has changed)"],
        ),
        (foreign_state("{}"), [], [f"{LAST}/run_state.json", "remove the folder"]),
        (foreign_state("null"), [], [f"{LAST}/run_state.json", "remove the folder"]),
    ],
)
def test_what_may_not_go_on_is_refused_in_one_line_and_changes_nothing(
    place: Workplace,
    copied: Path,
    damage: Callable[[Path], None],
    overrides: list[str],
    named: list[str],
) -> None:
    damage(copied / "checkpoints")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}

    before = content()
    status, output = start(place, "copied", *(text.format(folder=place.folder) for text in overrides))
    assert status == 2, output[-4000:]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert [part for part in named if part not in errors[0]] == [], errors[0]
    assert "Traceback" not in output
    assert content() == before


def test_a_change_that_is_allowed_is_said_and_the_history_of_settings_is_kept(place: Workplace, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints" / LAST)
    status, output = start(place, "copied", "actor.lr=0.5", "trainer.allow_config_change=true")
    assert status == 0, output[-4000:]
    assert f"changed after step {STEPS - 1}: actor.lr was 0.0001, is 0.5" in output
    assert place.metrics("copied")[-1]["actor/lr"] == 0.5
    recorded = {path.name: load_config(["--config", str(path)]).actor.lr for path in (copied / "configs").iterdir()}
    assert recorded == {"step_000000.yaml": 1e-4, f"{BEFORE}.yaml": 0.5}
    assert (copied / "config.yaml").read_text() == (copied / "configs" / f"{BEFORE}.yaml").read_text()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        *(
            (part, f"{LAST}/run_state.json is not what this version stores")
            for part in ("prompts", "validation", "random")
        ),
        ("std_filter", "the checkpoint's std-filter state has keys []"),
    ],
)
def test_a_state_that_cannot_be_restored_is_no_traceback(place: Workplace, copied: Path, part: str, said: str) -> None:
    """Every part is an object, as it should be, but one of them is empty."""
    state = json.loads((copied / "checkpoints" / LAST / "run_state.json").read_text())
    foreign_state(json.dumps({**state, part: {}}))(copied / "checkpoints")
    status, output = start(place, "copied")
    assert status == 2, output[-4000:]
    assert said in output
    assert "Traceback" not in output
