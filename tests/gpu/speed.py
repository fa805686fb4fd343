"""Measure this project against transformers on this GPU, with tools.bench, and record its numbers.

    python tests/gpu/speed.py FOLDER CASE [bench options...]

The model is as large as Qwen2.5-1.5B, with random weights, written to FOLDER unless it is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from gpu_records import record

SIZES = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
SHOWN = (
    *("speedup", "max_abs_diff", "peak_memory_ratio", "peak_memory_ours", "floor_fraction_with_attention"),
    *("matmul_flops_per_second", "seconds_ours", "seconds_baseline", "tokens_ours", "tokens_baseline"),
    *("seconds_optimizer", "gradient_relative_l2", "mean_abs_error_ours", "mean_abs_error_baseline"),
)


def write_model(folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM._from_config(Qwen2Config(**SIZES), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def main(folder: Path, case: str, options: list[str]) -> int:
    if not (folder / "config.json").is_file():
        write_model(folder)
    if case == "model":
        return 0
    from tools.bench.__main__ import main as bench

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = bench([case, "--model", str(folder), "--json", *options])
    if status:
        return status
    report = json.loads(printed.getvalue().strip().splitlines()[-1])
    for what in SHOWN:
        if what in report:
            record(test=f"bench {case}", what=what, value=report[what])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
