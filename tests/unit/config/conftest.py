"""Fixtures of the tests of generated configurations."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tiny_run import Place, as_arguments, write_files

from megatron_rlpr.config.loading import load_config
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
        training_prompts(load_config(as_arguments({})), tokenizer, tasks),
        model_shape(HfFolder("model").config()),
    )
    os.chdir(before)
