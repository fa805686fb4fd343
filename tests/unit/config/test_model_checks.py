"""A model that cannot be trained, or not in this layout, is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checked_runs import MIXTRAL, Run, refusal

from megatron_rlpr.config.checks import check


@pytest.mark.parametrize(
    ("hf", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"]),
        ({"architectures": None}, ["architectures"]),
        ({"num_attention_heads": "8"}, ["num_attention_heads"]),
        ({"head_dim": 48}, ["head_dim", "48"]),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(run: Run, hf: dict[str, Any], named: list[str]) -> None:
    message = refusal(run(hf=hf))
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize(
    ("hf", "overrides", "world_size", "named"),
    [
        (
            {},
            ["actor.expert_model_parallel_size=2"],
            2,
            ["actor.expert_model_parallel_size=2", "no experts", "set it to 1"],
        ),
        (
            MIXTRAL,
            ["actor.expert_model_parallel_size=2"],
            3,
            ["actor.expert_model_parallel_size=2", "3 data-parallel ranks", "multiple of 2"],
        ),
        (
            MIXTRAL,
            ["actor.expert_model_parallel_size=4"],
            4,
            ["actor.expert_model_parallel_size=4", "6 experts", "possible are 1, 2, 3, 6"],
        ),
        (
            {},
            ["actor.expert_tensor_parallel_size=2"],
            2,
            ["actor.expert_tensor_parallel_size=2", "no experts", "remove it"],
        ),
        (
            MIXTRAL,
            ["actor.expert_tensor_parallel_size=2", "actor.expert_model_parallel_size=3"],
            4,
            [
                "4 processes",
                "actor.expert_tensor_parallel_size=2 x actor.expert_model_parallel_size=3",
                "multiple of 6",
            ],
        ),
        (
            MIXTRAL,
            ["actor.expert_tensor_parallel_size=3"],
            3,
            ["actor.expert_tensor_parallel_size=3", "512 feed-forward columns", "possible are 1, 2, 4"],
        ),
        (
            MIXTRAL,
            ["actor.tensor_model_parallel_size=2"],
            2,
            ["mixture of experts", "set actor.sequence_parallel=true"],
        ),
    ],
)
def test_experts_that_cannot_be_spread_so_are_refused(
    run: Run, hf: dict[str, Any], overrides: list[str], world_size: int, named: list[str]
) -> None:
    message = refusal(run(*overrides, hf=hf), world_size)
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize("key", ["actor.tensor_model_parallel_size", "rollout.tensor_parallel_size"])
def test_ranks_may_be_a_multiple_of_the_key_value_heads(run: Run, key: str) -> None:
    check(run(f"{key}=8"), 8)
    heads = {"num_attention_heads": 12, "num_key_value_heads": 3, "intermediate_size": 528}
    message = refusal(run(f"{key}=2", hf=heads), 2)
    assert f"{key}=2 does not divide the 3 key/value heads" in message
    assert "possible are 1, 3, 6, 12" in message


def test_experts_are_spread_over_data_parallel_ranks_of_sharded_layers(run: Run) -> None:
    layout = [
        "actor.tensor_model_parallel_size=2",
        "actor.sequence_parallel=true",
        "actor.expert_model_parallel_size=3",
    ]
    check(run(*layout, hf=MIXTRAL), 6)
    whole_experts = [*layout, "actor.expert_tensor_parallel_size=1"]
    check(run(*whole_experts, hf=MIXTRAL), 6)
    assert "multiple of 6" in refusal(run(*whole_experts, hf=MIXTRAL), 4)


def test_an_incomplete_model_folder_is_refused(run: Run, tmp_path: Path) -> None:
    config, model = run(), tmp_path / "model"
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert "holds model.safetensors and model.safetensors.index.json of other files" in refusal(config)
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    assert "lacks 1 of 2 weight files, e.g. model-2.safetensors" in refusal(config)
    index.write_text("[]")
    assert "index.json must hold a JSON object" in refusal(config)
    index.unlink()
    (model / "model-1.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled weights" in refusal(config)
    (model / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(config)
    (model / "config.json").write_text("{")
    assert "config.json" in refusal(config)
