"""FP8 on a GPU, by recipe: how far scores and gradients are from bf16, that training works and goes on exactly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_policies import (
    difference_of_a_resumed_policy,
    end_groups,
    flat,
    make_policy,
    needs_transformer_engine,
    requests,
    rewarded,
    update,
)
from gpu_records import Within

pytestmark = needs_transformer_engine


def _recipes() -> list[str]:
    """Those that this GPU can compute."""
    if not torch.cuda.is_available():
        return ["delayed"]
    capability = torch.cuda.get_device_capability()
    names = ["delayed", "tensorwise"] if capability >= (8, 9) else []
    if capability[0] == 9:
        names.append("blockwise")
    return [*names, "mxfp8"] if capability[0] >= 10 else names


RECIPES = _recipes()


def fp8(recipe: str, stored: bool = False) -> dict[str, Any]:
    """stored: weights, too, are FP8 bytes, and the distributed optimizer has them in fp32."""
    keys = {"dtype": "bfloat16", "fp8": "hybrid", "fp8_recipe": recipe}
    return keys | ({"fp8_param": True, "use_distributed_optimizer": True} if stored else {})


with_weights_in_bf16_and_fp8 = pytest.mark.parametrize(
    ("recipe", "stored"),
    [(recipe, stored) for recipe in RECIPES for stored in (False, True) if not (stored and recipe == "delayed")],
)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
@pytest.mark.parametrize("odd", [0, 1])
def test_scores_are_near_those_of_bf16(recipe: str, family: str, odd: int, within: Within) -> None:
    wanted = requests(odd)
    exact = flat(make_policy(family, dtype="bfloat16").score(wanted))
    end_groups()
    policy = make_policy(family, **fp8(recipe))
    if recipe == "delayed":
        update(policy, rewarded(policy, wanted), lr=0.0)  # scales are set where gradients are
    difference = flat(policy.score(wanted)) - exact
    within(float(np.sqrt(np.square(difference).mean())), 0.3, "root mean square difference of log-probs")
    within(-float(np.abs(difference).max()), -1e-4, "largest difference, negative: FP8 was computed")


@with_weights_in_bf16_and_fp8
def test_eight_updates_raise_what_is_rewarded_and_scores_see_each(recipe: str, stored: bool, within: Within) -> None:
    wanted = requests(1)
    policy = make_policy("qwen2", **fp8(recipe, stored))
    sequences = rewarded(policy, wanted)
    means = [float(flat(policy.score(wanted)).mean())]
    for _ in range(8):
        assert np.isfinite(update(policy, sequences, lr=3e-4).grad_norm)
        means.append(float(flat(policy.score(wanted)).mean()))
    within(means[0] - means[-1], -0.5, "mean log-prob before minus after eight updates")
    within(-min(abs(a - b) for a, b in pairwise(means)), -1e-6, "smallest change, negative")


@with_weights_in_bf16_and_fp8
def test_a_resumed_policy_goes_on_bit_for_bit(recipe: str, stored: bool, tmp_path: Path, within: Within) -> None:
    within(difference_of_a_resumed_policy(tmp_path, **fp8(recipe, stored)), 0.0, "largest difference of log-probs")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_transformer_engine_and_megatrons_own_layers_agree(
    family: str, monkeypatch: pytest.MonkeyPatch, within: Within
) -> None:
    found = []
    for own in (False, True):
        if own:
            monkeypatch.setattr("megatron_rlpr.actor.model.tree_policy.transformer_engine_is_here", lambda: False)
        policy = make_policy(family, dtype="float32")
        result = update(policy, rewarded(policy, requests()))
        found.append((result.grad_norm, flat(policy.score(requests()))))
        end_groups()
    (norm, scores), (own_norm, own_scores) = found
    within(abs(own_norm / norm - 1), 1e-4, "relative difference of gradient norms")
    within(np.abs(scores - own_scores).max(), 1e-3, "largest difference of log-probs behind an update")
