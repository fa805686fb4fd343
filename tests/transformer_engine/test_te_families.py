"""Every family on Transformer Engine's layers and on Megatron's own: the same scores, gradients and updates in fp32.

Both run in this process, so the optimizer is Transformer Engine's for both; `test_te_layouts.py` compares with a
process that cannot see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fp8_recipes import relative_error
from gpu_policies import FAMILIES, flat, folder, make_policy, requests, rewarded, shape_of, update
from megatron.core import parallel_state
from torch import Tensor

from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.weights.architectures import hf_manifest
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.local_parameters import local_parameters

CHOICE = "megatron_rlpr.actor.model.tree_policy.transformer_engine_is_here"
each_family = pytest.mark.parametrize("family", FAMILIES)


@dataclass(frozen=True)
class Observed:
    """gradients: by Hugging Face name; they have been clipped."""

    layers: set[str]
    log_probs: np.ndarray
    gradients: dict[str, Tensor]
    after: np.ndarray


def gradients(policy: MegatronPolicy, family: str) -> dict[str, Tensor]:
    found = {}
    for parameter in local_parameters(policy.chunks, shape_of(family)):
        pieces = parameter.mapping.split(parameter.tensor.main_grad)
        found |= {t.name: piece.clone() for t, piece in zip(parameter.mapping.hf, pieces, strict=True)}
    return found


def observe(family: str) -> Observed:
    policy = make_policy(family)
    layers = {type(module).__name__ for module in policy.chunks[0].decoder.layers[0].modules()}
    sequences, log_probs = rewarded(policy, requests()), flat(policy.score(requests()))
    update(policy, sequences)
    return Observed(layers, log_probs, gradients(policy, family), flat(policy.score(requests())))


@each_family
def test_layers_of_both_kinds_compute_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    te = observe(family)
    parallel_state.destroy_model_parallel()
    monkeypatch.setattr(CHOICE, lambda: False)
    own = observe(family)
    assert any(name.startswith("TE") for name in te.layers), te.layers
    assert not any(name.startswith("TE") for name in own.layers), own.layers
    np.testing.assert_allclose(te.log_probs, own.log_probs, atol=1e-5, rtol=0)
    assert te.gradients.keys() == own.gradients.keys() == hf_manifest(shape_of(family)).keys()
    for name, gradient in own.gradients.items():
        assert relative_error(te.gradients[name], gradient) < 1e-5, name
    np.testing.assert_allclose(te.after, own.after, atol=1e-3, rtol=0)  # Adam divides small gradients by themselves
    assert np.abs(te.after - te.log_probs).max() > 0.1


@each_family
def test_an_export_is_what_was_loaded(family: str) -> None:
    policy, source = make_policy(family, dtype="bfloat16"), HfFolder(folder(family))
    exported = dict(WeightExporter(policy.chunks, shape_of(family), bucket_mb=1))
    assert {name: tuple(t.shape) for name, t in exported.items()} == hf_manifest(shape_of(family))
    assert all(torch.equal(t, source.read(name).bfloat16()) for name, t in exported.items())
