"""Conversions beside Transformer Engine: without its layers, which need a GPU, and for a policy that has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_policies import folder, make_policy, shape_of
from megatron.core import parallel_state

from checkpoint_conversion import hf_to_megatron, megatron_to_hf
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_a_converted_checkpoint_loads_into_transformer_engines_layers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformer_engine.pytorch.module.base.TransformerEngineBaseModule.__init__",
        lambda *_, **__: pytest.fail("a layer of Transformer Engine was made"),
    )
    hf_to_megatron.convert(folder(family), tmp_path / "megatron", "float32")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    monkeypatch.undo()
    source, back = HfFolder(folder(family)), HfFolder(tmp_path / "back")
    assert all(torch.equal(source.read(name), back.read(name)) for name in source.stored)
    policy = make_policy(family)
    with torch.no_grad():
        for parameter in policy.chunks[0].parameters():
            parameter.zero_()
    load_megatron_checkpoint(policy.chunks, shape_of(family), tmp_path / "megatron")
    for name, weight in WeightExporter(policy.chunks, shape_of(family), bucket_mb=1):
        assert torch.equal(weight, source.read(name)), name
    parallel_state.destroy_model_parallel()
