"""`bench table`: tokens over response lengths and numbers of responses, with our time where it is quick to take."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES
from tools.bench import baseline, policy
from tools.bench.measure import matmul_rate, timed
from tools.bench.workload import DrawTokens, Sizes, make_groups

RESPONSES = (1, 4, 8, 16, 32)
LENGTHS = (128, 512, 1024, 2048, 4096)
TIMED_TOKENS = 36_000
"""Points with more tokens than this are counted, not timed."""
_REPETITIONS = 2


def run(folder: Path, sizes: Sizes, draw: DrawTokens, actor: ActorConfig, seed: int) -> dict[str, Any]:
    """One row a point: tokens of both sides for scoring one group, our seconds and distance to the floor."""
    built = policy.load(folder, actor, trainable=False)
    dtype = DTYPES[actor.dtype]
    rows = []
    for length in LENGTHS:
        for n in RESPONSES:
            (group,) = make_groups(replace(sizes, groups=1, n=n, response=length), draw, seed)
            requests = [*group.responses, *group.spliced]
            padded = baseline.padded_tokens(group.responses) + baseline.padded_tokens(group.spliced)
            tokens, linear, attention = built.work(requests)
            row: dict[str, Any] = {
                "response": length,
                "n": n,
                "tokens_baseline": padded,
                "tokens_ours": tokens,
                "token_ratio": padded / tokens,
                "attention_share": attention / (linear + attention),
            }
            if tokens <= TIMED_TOKENS:
                built.policy.score(requests)
                before = matmul_rate(dtype)
                score = partial(built.policy.score, requests)
                seconds = [timed(score)[1] for _ in range(_REPETITIONS)]
                row["seconds_ours"] = statistics.median(seconds)
                row["floor_fraction"] = 2 * linear / (before + matmul_rate(dtype)) / row["seconds_ours"]
            rows.append(row)
    return {"points": rows}
