"""A start goes on with a run only when it means the same run, and says what it changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_rlpr.config.free_to_change import FREE_TO_CHANGE
from megatron_rlpr.config.keys import all_keys, sections
from megatron_rlpr.config.loading import resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.evaluation.held_out import ValidationSet
from megatron_rlpr.run.continuity import check_goes_on, fingerprints
from megatron_rlpr.types import Prompt, UserError

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
PRINTS = {"model": "m", "tokenizer": "t", "train": "p", "val_one": "v"}
CHECKPOINT = Path("runs/run/checkpoints/step_000003")


def check(config: Config, steps: int = 6, began_with: Config | None = None, **prints: str) -> list[str]:
    state = {"step": 3, "fingerprints": PRINTS, "config": resolved(began_with or Config())}
    return check_goes_on(config, steps, state, {**PRINTS, **prints}, CHECKPOINT)


def another(value: Any, choices: tuple[str, ...]) -> Any:
    """A value that differs."""
    if choices:
        return next(choice for choice in choices if choice != value)
    return [*value, "x"] if isinstance(value, list) else not value if isinstance(value, bool) else value + 1


def test_what_is_free_to_change_exists() -> None:
    assert {*sections(), *all_keys()} >= FREE_TO_CHANGE


@pytest.mark.parametrize("name", [name for name in all_keys() if name not in ("trainer.val_only",)])
def test_every_change_is_named_and_one_that_means_another_run_is_asked_for(name: str) -> None:
    key, config = all_keys()[name], Config()
    before, after = key.value(config), another(key.value(config), key.choices) if key.annotation is not str else "other"
    key.set(config, after)
    said = f"{name} was {before!r}, is {after!r}"
    if not {key.section, name} & FREE_TO_CHANGE:
        with pytest.raises(UserError, match=r"other settings: .*trainer\.allow_config_change=true") as refused:
            check(config)
        assert said in str(refused.value)
        config.trainer.allow_config_change = True
    assert said in check(config)


def test_where_nothing_changed_nothing_is_said() -> None:
    assert check(Config()) == []


def test_a_key_that_a_checkpoint_does_not_know_had_its_default() -> None:
    stored = resolved(Config())
    del stored["actor"]["lr"], stored["evaluation"]
    config, state = Config(), {"step": 3, "fingerprints": PRINTS, "config": stored}
    assert check_goes_on(config, 6, state, PRINTS, CHECKPOINT) == []
    config.actor.lr = 1.0
    with pytest.raises(UserError, match=r"actor\.lr was 1e-06, is 1\.0"):
        check_goes_on(config, 6, state, PRINTS, CHECKPOINT)


def test_fewer_steps_than_there_are_can_only_be_validated() -> None:
    assert check(Config(), steps=3) == []
    with pytest.raises(UserError, match=r"already at step 3, and this start asks for 2: .*val_only=true"):
        check(Config(), steps=2)
    config = Config()
    config.trainer.val_only, config.actor.lr = True, 1.0
    assert len(check(config, steps=2, train="the prompts of a validation file")) == 2, "training settings mean nothing"
    config.evaluation.temperature = 0.5
    with pytest.raises(UserError, match=r"evaluation\.temperature"):
        check(config, steps=2)


@pytest.mark.parametrize("name", PRINTS)
def test_other_content_is_refused_whatever_is_allowed(name: str) -> None:
    config = Config()
    config.trainer.allow_config_change = True
    with pytest.raises(UserError, match=rf"other content than this start has: [a-z ]*{name}\. .*{CHECKPOINT}"):
        check(config, **{name: "other"})
    assert check(config, val_new="a set more")


def prints(model: Path, prompts: list[Prompt], held_out: list[Prompt]) -> dict[str, str]:
    config = Config()
    config.model.path = str(model)
    sets = [ValidationSet("one", PromptSet(tuple(held_out), 0), 1)]
    return fingerprints(config, load_tokenizer(str(model)), PromptSet(tuple(prompts), 0), sets)


def flip_a_weight(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (model / "model.safetensors").write_bytes(content)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edited(model: Path) -> None:
        content = json.loads((model / name).read_text())
        change(content)
        (model / name).write_text(json.dumps(content))

    return edited


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda _: None, []),
        (flip_a_weight, ["model"]),
        (edit("config.json", lambda config: config.update(rope_theta=5.0)), ["model"]),
        (edit("tokenizer.json", lambda tokenizer: None), []),
        (edit("tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].pop()), ["tokenizer"]),
        (edit("tokenizer_config.json", lambda config: config.update(pad_token="<|other|>")), ["tokenizer"]),
    ],
)
def test_a_moved_folder_is_the_same_model_and_a_changed_one_is_not(
    tmp_path: Path, change: Callable[[Path], None], differs: list[str]
) -> None:
    prompts = [Prompt(index, (1, 2, index), ({"role": "user", "content": "a"},), "b", "unit") for index in range(3)]
    shutil.copytree(TOKENIZER, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 4}')
    save_file({"weight": torch.ones(4)}, tmp_path / "model" / "model.safetensors")
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    change(tmp_path / "moved")
    before, after = (prints(tmp_path / name, prompts, prompts[:1]) for name in ("model", "moved"))
    assert [name for name in before if before[name] != after[name]] == differs


@pytest.mark.parametrize(
    "change",
    [
        {"index": 9},
        {"token_ids": (1, 2, 4)},
        {"reference_answer": "c"},
        {"data_source": "other"},
        {"messages": ({"role": "user", "content": "c"},)},
    ],
)
def test_every_part_of_every_prompt_counts(tmp_path: Path, change: dict[str, Any]) -> None:
    prompts = [Prompt(index, (1, 2, index), ({"role": "user", "content": "a"},), "b", "unit") for index in range(3)]
    shutil.copytree(TOKENIZER, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    save_file({"weight": torch.ones(4)}, tmp_path / "model" / "model.safetensors")
    before = prints(tmp_path / "model", prompts, prompts)
    others = [*prompts[:2], replace(prompts[2], **change)]
    for trained, held_out, differs in ((others, prompts, "train"), (prompts, others, "val_one")):
        after = prints(tmp_path / "model", trained, held_out)
        assert [name for name in before if before[name] != after[name]] == [differs]
