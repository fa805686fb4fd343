"""`python -m tools.bench` on a small model: both sides compute the same thing, and the figures add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.bench.workload import Sizes, make_groups, random_tokens

ROOT = Path(__file__).parents[3]
VOCAB = 200
SIZES = Sizes(groups=2, n=3, prompt=20, response=30, reference=4)
ARGUMENTS = [
    "--groups",
    "2",
    "--n",
    "3",
    "--prompt",
    "20",
    "--response",
    "30",
    "--reference",
    "4",
    "--threads",
    "1",
    "--json",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def bench(case: str, model: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.bench", case, "--model", str(model), *ARGUMENTS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_equal_the_baselines_with_fewer_tokens(model: Path, dtype: str) -> None:
    report = bench("score", model, "--dtype", dtype)
    groups = make_groups(SIZES, random_tokens(VOCAB))
    padded = sum(
        SIZES.n * max(len(r.token_ids) for r in requests)
        for group in groups
        for requests in (group.responses, group.spliced)
    )
    assert report["tokens_baseline"] == padded
    distinct = sum(
        len({r.token_ids[:t] for r in group.responses + group.spliced for t in range(1, r.stop)}) for group in groups
    )
    assert report["tokens_ours"] == distinct
    if dtype == "float32":
        assert report["max_abs_diff"] < 1e-4
        assert report["max_abs_diff_entropy"] < 1e-4
    else:
        assert report["mean_abs_error_ours"] < 2 * report["mean_abs_error_baseline"] + 1e-3
    assert min(report[key] for key in ("speedup", "floor_fraction", "seconds_ours", "seconds_baseline")) > 0


def test_without_sharing_every_sequence_is_computed_alone_with_the_same_numbers(model: Path) -> None:
    report = bench("score", model, "--dtype", "float32", "--no-sharing")
    groups = make_groups(SIZES, random_tokens(VOCAB))
    assert report["tokens_ours"] == sum(r.stop - 1 for group in groups for r in group.responses + group.spliced)
    assert report["max_abs_diff"] < 1e-4


def test_gradients_equal_the_baselines(model: Path) -> None:
    report = bench("update", model, "--dtype", "float32")
    assert report["gradient_relative_l2"] < 1e-4
    assert 0 < report["gradient_relative_l2_log_softmax"] < 1e-4
    assert 0 < report["gradient_error_ours"] < 1e-4
    assert 0 < report["gradient_error_baseline"] < 1e-4
    assert report["max_abs_diff"] < 1e-5
    assert report["tokens_ours"] < report["tokens_baseline"]


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.bench", "score", "--model", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
