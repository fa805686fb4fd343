"""`python -m tools.bench` on a small model: both sides compute the same thing, and the figures add up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_rlpr.types import UserError
from tools.bench import delta_case
from tools.bench.workload import Sizes, make_groups, random_tokens

ROOT = Path(__file__).parents[3]
VOCAB = 200
SIZES = Sizes(groups=2, n=3, prompt=20, response=30, reference=4)
SIZED = ["--groups", "2", "--n", "3", "--prompt", "20", "--response", "30", "--reference", "4"]
ARGUMENTS = [*SIZED, "--threads", "1", "--repetitions", "1", "--json"]
CASES = {
    "score": ("score", "--dtype", "float32"),
    "score in bfloat16": ("score", "--dtype", "bfloat16"),
    "score without sharing": ("score", "--dtype", "float32", "--no-sharing"),
    "update": ("update", "--dtype", "float32"),
}
PROGRAM = """
import json, os, sys
from tools.bench import score_case, update_case  # once for all cases
from tools.bench.__main__ import main
for arguments in json.loads(sys.argv[1]):
    if os.fork() == 0:
        status = main(arguments)
        sys.stdout.flush()
        os._exit(status)
    assert os.wait()[1] == 0
"""


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


@pytest.fixture(scope="module")
def reports(model: Path) -> dict[str, dict[str, Any]]:
    """What every case reports, each from a process of its own."""
    arguments = [[*case, "--model", str(model), *ARGUMENTS] for case in CASES.values()]
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", ["score", "score in bfloat16"])
def test_scores_equal_the_baselines_with_fewer_tokens(reports: dict[str, dict[str, Any]], case: str) -> None:
    report = reports[case]
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
    if case == "score":
        assert report["max_abs_diff"] < 1e-4
        assert report["max_abs_diff_entropy"] < 1e-4
    else:
        assert report["mean_abs_error_ours"] < 2 * report["mean_abs_error_baseline"] + 1e-3
    assert min(report[key] for key in ("speedup", "floor_fraction", "seconds_ours", "seconds_baseline")) > 0


def test_without_sharing_every_sequence_is_computed_alone_with_the_same_numbers(
    reports: dict[str, dict[str, Any]],
) -> None:
    report = reports["score without sharing"]
    groups = make_groups(SIZES, random_tokens(VOCAB))
    assert report["tokens_ours"] == sum(r.stop - 1 for group in groups for r in group.responses + group.spliced)
    assert report["max_abs_diff"] < 1e-4


def test_gradients_equal_the_baselines(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["update"]
    assert report["gradient_relative_l2"] < 1e-4
    assert 0 < report["gradient_relative_l2_log_softmax"] < 1e-4
    assert 0 < report["gradient_error_ours"] < 1e-4
    assert 0 < report["gradient_error_baseline"] < 1e-4
    assert report["max_abs_diff"] < 1e-5
    assert report["tokens_ours"] < report["tokens_baseline"]


def test_what_a_delta_sends_is_counted_between_the_steps_that_were_kept(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    total = sum(tensor.numel() for tensor in weights.values())
    for step in (1, 2, 3):
        weights["model.norm.weight"][step] += 1.0
        shutil.copytree(model, tmp_path / f"step_{step:06d}")
        save_file(weights, tmp_path / f"step_{step:06d}" / "model.safetensors")
    first, second = delta_case.run(tmp_path, torch.bfloat16)["points"]
    assert (first["steps"], second["steps"]) == ("1 to 2", "2 to 3")
    assert first["delta_density"] == second["delta_density"] == 1 / total
    changed, tensors = 8 + 2 + 1, len(weights)  # a value and a gap behind the number of values
    assert round(first["mb_sent"] * 1e6) == 8 * (tensors - 1) + changed
    with pytest.raises(UserError, match="expected the folders of two steps or more"):
        delta_case.run(tmp_path / "nowhere", torch.bfloat16)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.bench", "score", "--model", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
