"""tools.plan --build: the real Megatron model of every stage holds what was planned, under the names of both worlds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
MODEL = json.loads((ROOT / "examples/recipes/models/qwen3-30b-a3b/config.json").read_text()) | {
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 192,
    "vocab_size": 5001,
}
RECIPE = {
    "model": {"path": "made"},
    "data": {"train_files": ["made.parquet"]},
    "actor": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "pipeline_model_parallel_layout": "Et|t|tt|tL",
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
        "use_distributed_optimizer": True,
    },
}


def test_every_stage_and_chunk_of_a_mixture_of_experts_is_as_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    options = ["--config", str(tmp_path / "recipe.yaml"), "--model", str(tmp_path), "--gpus", "64", "--build", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    built = json.loads(done.stdout)["build"]
    assert built["mismatches"] == []
    assert [stage["rank"] for stage in built["stages"]] == [0, 35]
    assert 1 < built["imbalance"] < 1.5
    for stage in built["stages"]:
        assert stage["bytes"]["gradients"] == 2 * stage["bytes"]["weights"] == 4 * stage["parameters"]
