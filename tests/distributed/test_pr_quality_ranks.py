"""tools.pr_quality from end to end on a small random model: one process, and two that share its responses or layers."""

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
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "goldens" / "tokenizers" / "bpe_chat"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "one process": ([], []),
    "DP2": (TORCHRUN, []),
    "TP2": (TORCHRUN, ["actor.tensor_model_parallel_size=2"]),
}

Reports = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
"""What each layout printed, and the measures that it wrote."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes,
        num_key_value_heads=2,
        vocab_size=len(AutoTokenizer.from_pretrained(TOKENIZER)),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / "model")
    rows = [
        {
            "question": f"{number // 2} and {number // 2}?",
            "response": f"We count to {number}.\nIt is {number}" if number != 3 else "see <answer>",
            "reference": str(2 * (number // 2)),
            "correct": number % 2 == 0,
            "category": "sums" if number < 6 else "more",
        }
        for number in range(12)
    ]
    rows.append({**rows[0], "response": "so " * 300})
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def reports(place: Path) -> Reports:
    tool = ["-m", "tools.pr_quality", "--model", str(place / "model"), "--responses", str(place / "r.jsonl")]
    settings = ["actor.dtype=float32", "actor.max_tokens_per_micro_batch=256"]
    flags = ["--json", "--length-control", "--resamples", "20", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {}
    for name, (launcher, overrides) in LAYOUTS.items():
        written = ["--scores", str(place / f"{name}.jsonl"), "--plot", str(place / f"{name}.png")]
        command = [sys.executable, *launcher, *tool, *flags, *written, *overrides]
        running[name] = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    found = {}
    for name, process in running.items():
        printed, complaints = process.communicate(timeout=900)
        assert process.returncode == 0, complaints[-3000:]
        assert printed.count("\n") == 1, "the first rank alone prints"
        scores = [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
        found[name] = json.loads(printed), scores
    return found


def test_all_that_can_be_scored_is_and_the_rest_is_counted(reports: Reports, place: Path) -> None:
    report, scores = reports["one process"]
    assert [row["line"] for row in scores] == [1, 2, 3, *range(5, 13)]
    assert report["left_out"] == {"longer": 1, "unplaced": 1}
    assert report["overall"]["responses"] == len(scores) == 11
    assert report["overall"]["questions"] == 6
    assert {name: part["responses"] for name, part in report["categories"].items()} == {"more": 6, "sums": 5}
    assert (place / "one process.png").read_bytes().startswith(b"\x89PNG")
    assert [row["rule grade"] for row in scores if row["line"] in (1, 2)] == [1, 0]
    for row in scores:
        assert 0 < row["min token probability"] <= row["geometric mean"] <= row["mean probability"] < 1


@pytest.mark.parametrize("layout", ["DP2", "TP2"])
def test_two_ranks_give_the_numbers_of_one(reports: Reports, layout: str) -> None:
    alone, shared = reports["one process"][1], reports[layout][1]
    assert len(alone) == len(shared)
    for one, other in zip(alone, shared, strict=True):
        assert other == {name: pytest.approx(value, abs=1e-5, rel=1e-5) for name, value in one.items()}


def test_the_probability_is_transformers_of_the_spliced_text(reports: Reports, place: Path) -> None:
    """The first response, written out by hand and scored by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    message = {"role": "user", "content": "0 and 0?"}
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    before = f"{prompt}<think> We count to 0.\nIt is 0 </think> <answer> "
    wanted = {"add_special_tokens": False, "return_offsets_mapping": True, "return_tensors": "pt"}
    encoded = tokenizer(f"{before}0 </answer>", **wanted)
    rows = [
        token
        for token, (start, stop) in enumerate(encoded["offset_mapping"][0].tolist())
        if start < len(before) + 1 and stop > len(before)
    ]
    ids = encoded["input_ids"]
    with torch.no_grad():
        log_probs = LlamaForCausalLM.from_pretrained(place / "model")(ids).logits[0].log_softmax(-1)
    probabilities = [float(log_probs[token - 1, ids[0, token]].exp()) for token in rows]
    measured = reports["one process"][1][0]
    assert measured["mean probability"] == pytest.approx(sum(probabilities) / len(probabilities), abs=1e-5)
