"""Fixtures of the tests of checks and of generated configurations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checked_runs import HF_CONFIG, Run
from tiny_run import Place, as_arguments, write_files
from zero_weights import write_zeros

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.run.prompts import training_prompts
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder

pytest.register_assert_rewrite("built_runs")  # its assertions say in full what they found, as those of a test do


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    here = tmp_path_factory.mktemp("generated")
    write_files(here)
    before = os.getcwd()
    os.chdir(here)
    tokenizer = load_tokenizer("model")
    tasks = GradeTasks(SpecialTokens.of(tokenizer), "R1")
    yield Place(
        tokenizer,
        training_prompts(load_config(as_arguments({})), tokenizer, tasks, []),
        model_shape(HfFolder("model").config()),
    )
    os.chdir(before)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A configuration that passes all checks, with overrides; files it names exist below {here}. There is no GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(HF_CONFIG))
    (tmp_path / "other").mkdir()
    (model / "tokenizer.json").write_text("{}")
    for name in ("../train.parquet", "../val.parquet", "../other/val.parquet"):
        (model / name).write_bytes(b"")

    def build(*overrides: str, hf: dict[str, Any] | None = None) -> Config:
        if hf:
            (model / "config.json").write_text(json.dumps({**HF_CONFIG, **hf}))
        write_zeros(model)
        valid = [f"model.path={model}", f"data.train_files={tmp_path}/train.parquet"]
        return load_config([*valid, *(override.replace("{here}", str(tmp_path)) for override in overrides)])

    return build
