"""`bench packing`: how long it takes to plan a large batch, and how evenly the ranks are loaded."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from megatron_rlpr.packing import CostModel, plan
from megatron_rlpr.types import ScoreRequest

RANKS = (8, 16, 32)
RESPONSES = 8
MAX_RESPONSE = 3072
QWEN_7B = CostModel(
    linear_flops_per_token=13_050_576_896.0, attention_flops_per_pair=401_408.0, head_flops_per_row=1_089_994_752.0
)
"""Costs of Qwen2.5-7B."""


def long_tailed_batch(groups: int, seed: int = 0) -> list[ScoreRequest]:
    """The responses of `groups` prompts, log-normal: prompts around 200, responses around 800, at most 3,072."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(groups):
        prompt = rng.integers(0, 152064, int(np.clip(rng.lognormal(np.log(200), 0.5), 40, 1024))).tolist()
        mean = rng.lognormal(np.log(800), 0.5)
        for _ in range(RESPONSES):
            length = int(np.clip(rng.lognormal(np.log(mean), 0.4), 16, MAX_RESPONSE))
            tokens = (*prompt, *rng.integers(0, 152064, length).tolist())
            requests.append(ScoreRequest(tokens, len(prompt), len(tokens)))
    return requests


def run(sequences: int, max_tokens: int) -> dict[str, Any]:
    """Seconds to plan and build one rank's micro-batches, imbalance of FLOPs and tokens saved, at 8, 16 and 32 ranks.

    The baseline's tokens are those of the same sequences without sharing.
    """
    requests = long_tailed_batch(-(-sequences // RESPONSES))[:sequences]
    tokens = sum(r.stop - 1 for r in requests)
    report: dict[str, Any] = {"sequences": len(requests), "max_tokens": max_tokens, "tokens_baseline": tokens}
    by_ranks = []
    for ranks in RANKS:
        start = time.perf_counter()
        packed = plan(requests, max_tokens, ranks, cost_model=QWEN_7B)
        planned = time.perf_counter()
        packed.for_rank(0)
        built = time.perf_counter()
        by_ranks.append((planned - start, built - planned, packed))
        report |= {
            f"seconds_plan_dp{ranks}": planned - start,
            f"seconds_build_dp{ranks}": built - planned,
            f"imbalance_dp{ranks}": packed.imbalance,
            f"micro_batches_dp{ranks}": packed.num_micro_batches,
        }
    return report | {
        "tokens_ours": by_ranks[0][2].num_tokens,
        "seconds_ours": max(a + b for a, b, _ in by_ranks),
        "imbalance": max(packed.imbalance for _, _, packed in by_ranks),
    }
