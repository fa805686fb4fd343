"""A run goes on from its newest whole checkpoint, and says of damaged ones what is wrong. RLPR_SEED and RLPR_CASES
choose other damage and how much of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from generated_cases import SEED, case_count

from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.config.schema import TrainerConfig
from megatron_rlpr.run.state import resume_step, stored_state
from megatron_rlpr.system import sealed_folder
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape

CASES = case_count(40)
SHAPE = model_shape(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
    }
)
NAMES = ("prompts", "std_filter", "kl_controller", "validation", "random", "config", "fingerprints")
STATE = {"step": 3, **{name: {} for name in NAMES}}


def write_checkpoint(folder: Path, dice: random.Random, state: Any = STATE) -> None:
    """What a checkpoint consists of, with noise for weights."""
    (folder / "megatron").mkdir(parents=True)
    for name in ("metadata.json", ".metadata", "__0_0.distcp", "__1_0.distcp"):
        (folder / "megatron" / name).write_bytes(dice.randbytes(dice.randrange(1, 3000)))
    (folder / "model_shape.json").write_text(json.dumps(asdict(SHAPE)))
    (folder / "run_state.json").write_text(json.dumps(state))
    sums = {name: sealed_folder.sha256(folder / name) for name in sealed_folder.files(folder)}
    sealed_folder.seal(folder, {}, sums)


@pytest.fixture
def dice() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def store(tmp_path: Path, dice: random.Random) -> CheckpointStore:
    """The checkpoints of steps 3 and 6."""
    for step in (3, 6):
        write_checkpoint(tmp_path / f"step_{step:06d}", dice)
    return CheckpointStore(tmp_path, SHAPE, keep_last=2)


def flipped(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def cut(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(max(1, path.stat().st_size - 1))])


def removed(path: Path, _: random.Random) -> None:
    path.unlink()


def exchanged(path: Path, dice: random.Random) -> None:
    """As a file of another checkpoint, or a hand, would be."""
    path.write_text(dice.choice(["{}", "null", "[]", "3", '{"step": "x"}', '{"files": []}', '{"files": {"a": 1}}', ""]))


def test_damage_of_any_file_falls_back_to_the_checkpoint_before(
    store: CheckpointStore, dice: random.Random, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, whole = store.path(6), tmp_path / "whole"
    shutil.copytree(newest, whole)
    assert resume_step(TrainerConfig(), store, Console(False)) == 6
    assert capsys.readouterr().out == ""
    for _ in range(CASES):
        damage: Callable[[Path, random.Random], None] = dice.choice([flipped, cut, removed, exchanged])
        file = dice.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        damage(file, dice)
        assert resume_step(TrainerConfig(), store, Console(False)) == 3, f"{damage.__name__} {file}"
        said = capsys.readouterr().out
        blamed = file.relative_to(newest).as_posix()
        assert f"{newest} is damaged (" in said, said
        assert said.endswith(": going on from step 3\n"), said
        assert said.count("\n") == 1
        assert blamed in said or blamed == "sealed.json", f"{damage.__name__} {file}: {said}"
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)


def test_damage_of_all_is_refused(store: CheckpointStore, dice: random.Random) -> None:
    for step in (3, 6):
        flipped(store.path(step) / "megatron" / "__1_0.distcp", dice)
    with pytest.raises(UserError, match=r"no checkpoint .*step_000006 is damaged .*__1_0.*step_000003 is damaged"):
        resume_step(TrainerConfig(), store, Console(False))


@pytest.mark.parametrize(
    "state",
    [None, [], 3, "x", {}, [["step", 3]], *({**STATE, name: wrong} for name in STATE for wrong in (None, "x", [1]))],
)
def test_a_whole_checkpoint_with_a_foreign_state_is_refused(tmp_path: Path, dice: random.Random, state: Any) -> None:
    write_checkpoint(tmp_path / "step_000003", dice, state)
    with pytest.raises(UserError, match=r"step_000003/run_state\.json .*: remove the folder"):
        stored_state(CheckpointStore(tmp_path, SHAPE, keep_last=2), 3)


def test_a_whole_checkpoint_of_another_model_is_refused(tmp_path: Path, store: CheckpointStore) -> None:
    other = replace(SHAPE, hidden_size=32)
    with pytest.raises(UserError, match="checkpoint of another model: hidden_size=64, expected 32"):
        stored_state(CheckpointStore(tmp_path, other, keep_last=2), 6)
    assert stored_state(store, 6) == STATE
