"""What the actor gives up while engines generate is free on the GPU, and comes back bit for bit (actor.offload).

Run on a machine with a GPU: `bash tests/gpu/run.sh OUT`. Elsewhere every test is skipped with that reason.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from gpu_policies import end_groups, flat, make_policy, requests, rewarded, shape_of, update
from gpu_records import Within

from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.export import WeightExporter


def trained(offload: str, **options: Any) -> tuple[list[float], str]:
    """Log-probs after each of three updates, with memory lent before every call, and the checksum of an export."""
    policy = make_policy("qwen2", offload=offload, **options)
    exporter = WeightExporter(policy.chunks, shape_of("qwen2"), 1, policy.memory.weight)
    sequences, means = rewarded(policy, requests()), []
    for _ in range(3):
        policy.memory.offload()
        update(policy, sequences)
        policy.memory.offload()
        means.append(float(flat(policy.score(requests())).mean()))
    policy.memory.offload()
    checksum = weights_checksum(exporter)
    end_groups()
    return means, checksum


@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_with_memory_lent_equals_training_without(offload: str, dtype: str) -> None:
    assert trained(offload, dtype=dtype) == trained("none", dtype=dtype)


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_what_is_lent_is_free_on_the_gpu(offload: str, within: Within) -> None:
    policy = make_policy("qwen2", offload=offload, dtype="bfloat16")
    sequences = rewarded(policy, requests())
    update(policy, sequences)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    policy.memory.offload()
    moved = policy.memory.take_moved()
    freed = before - torch.cuda.memory_allocated()
    within(abs(freed - moved.offloaded - moved.released) / freed, 0.01, "share of the freed memory that is unexplained")
    policy.memory.restore()
    within(abs(torch.cuda.memory_allocated() - before) / before, 0.01, "change of the memory after it came back")
