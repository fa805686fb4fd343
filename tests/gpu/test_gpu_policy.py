"""The policy on a GPU: the same trees, the same numbers as transformers, whoever's layers it is made of.

Run on a machine with a GPU: `bash tests/gpu/run.sh OUT`. Elsewhere every test is skipped with that reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_policies import (
    FAMILIES,
    difference_of_a_resumed_policy,
    end_groups,
    flat,
    folder,
    make_policy,
    needs_transformer_engine,
    reference_log_probs,
    requests,
    rewarded,
    shape_of,
    update,
)
from gpu_records import Within

from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder

_EXACT = 1e-4
"""Of log-probs in fp32: kernels add in another order."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_equal_transformers(family: str, dtype: str, within: Within) -> None:
    """In bf16 a token near the border between two experts may go to the other one."""
    wanted = requests()
    difference = flat(make_policy(family, dtype=dtype).score(wanted)) - reference_log_probs(family, wanted)
    if dtype == "float32":
        within(np.abs(difference).max(), _EXACT, "largest difference of log-probs")
    else:
        bound = 0.3 if shape_of(family).experts else 0.03
        within(float(np.sqrt(np.square(difference).mean())), bound, "root mean square difference of log-probs")


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_raise_what_is_rewarded(family: str, within: Within) -> None:
    policy = make_policy(family, dtype="bfloat16")
    wanted = requests()
    sequences = rewarded(policy, wanted)
    means = [flat(policy.score(wanted)).mean()]
    for _ in range(3):
        assert np.isfinite(update(policy, sequences, lr=2e-4).grad_norm)
        means.append(flat(policy.score(wanted)).mean())
    within(float(max(np.diff(-np.array(means)))), 0.0, "largest fall of the mean log-prob over three updates")


@pytest.mark.parametrize(
    "options",
    [{"share_prefixes": False}, {"recompute_granularity": "full"}, {"recompute_granularity": "selective"}],
    ids=lambda options: "-".join(map(str, *options.items())),
)
def test_another_way_gives_the_same_update(options: dict, within: Within) -> None:
    found = []
    for extra in ({}, options):
        policy = make_policy(dtype="float32", **extra)
        result = update(policy, rewarded(policy, requests()))
        found.append((result.grad_norm, flat(policy.score(requests()))))
        end_groups()
    (norm, scores), (other_norm, other_scores) = found
    within(abs(other_norm / norm - 1), 1e-5, "relative difference of gradient norms")
    within(np.abs(scores - other_scores).max(), 1e-3, "largest difference of log-probs behind the update")


def test_the_same_update_twice_gives_the_same_bits(within: Within) -> None:
    """In bf16, with shared prefixes: gradients of shared keys are added in one order."""
    found = []
    for _ in range(2):
        policy = make_policy("qwen2", dtype="bfloat16")
        sequences = rewarded(policy, requests())
        norms = [update(policy, sequences).grad_norm for _ in range(3)]
        found.append((norms, flat(policy.score(requests()))))
        end_groups()
    assert found[0][0] == found[1][0]
    within(np.abs(found[0][1] - found[1][1]).max(), 0.0, "largest difference of log-probs")


@pytest.mark.parametrize("distributed_optimizer", [False, pytest.param(True, marks=needs_transformer_engine)])
def test_a_resumed_policy_goes_on_bit_for_bit(distributed_optimizer: bool, tmp_path: Path, within: Within) -> None:
    options = {"dtype": "bfloat16", "use_distributed_optimizer": distributed_optimizer}
    within(difference_of_a_resumed_policy(tmp_path, **options), 0.0, "largest difference of log-probs")


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_weights_are_those_that_were_loaded(family: str) -> None:
    policy = make_policy(family, dtype="float32")
    stored = HfFolder(folder(family))
    exported = dict(WeightExporter(policy.chunks, shape_of(family), bucket_mb=4))
    assert exported.keys() >= {name for name in stored.shapes() if "lm_head" not in name}
    for name, tensor in exported.items():
        assert torch.equal(tensor.cpu(), stored.read(name).to(tensor.dtype)), name
