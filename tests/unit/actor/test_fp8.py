"""FP8 keys reach Megatron's three configurations, and packing pads to what each recipe takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rlpr.actor import fp8
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.packing import plan, share_of
from megatron_rlpr.types import ScoreRequest

LAYERS = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "bf16": True, "params_dtype": torch.bfloat16}


def actor(**keys: Any) -> ActorConfig:
    return ActorConfig(**{"fp8": "hybrid", "fp8_recipe": "blockwise", **keys})


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str = "13.0") -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    monkeypatch.setattr("torch.version.cuda", cuda)


@pytest.mark.parametrize(
    ("capability", "cuda", "recipe"),
    [
        ((8, 9), "13.0", "tensorwise"),
        ((9, 0), "13.0", "blockwise"),
        ((9, 0), "12.9", "blockwise"),
        ((9, 0), "12.8", "tensorwise"),
        ((10, 0), "13.0", "mxfp8"),
        ((10, 3), "13.0", "mxfp8"),
        ((12, 0), "13.0", "tensorwise"),
    ],
)
def test_the_default_recipe_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str, recipe: str
) -> None:
    pretend_gpu(monkeypatch, capability, cuda)
    assert fp8.resolved(ActorConfig(fp8="hybrid")).fp8_recipe == recipe
    assert fp8.resolved(ActorConfig(fp8="hybrid", fp8_recipe="delayed")).fp8_recipe == "delayed"


def test_without_fp8_no_gpu_is_asked_and_nothing_is_set() -> None:
    plain = ActorConfig()
    assert fp8.resolved(plain) is plain
    assert [f(plain) for f in (fp8.transformer_options, fp8.buffer_options, fp8.optimizer_options)] == [{}] * 3
    assert fp8.scoring_settings(plain) == {}
    assert fp8.sequence_multiple(plain) == 1


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("param", [False, True])
def test_keys_reach_all_three_configurations(recipe: str, param: bool) -> None:
    keys = actor(fp8="e4m3", fp8_recipe=recipe, fp8_param=param, fp8_amax_history_len=7, fp8_amax_compute_algo="max")
    layers = TransformerConfig(**LAYERS, **fp8.transformer_options(keys))
    buffers = DistributedDataParallelConfig(**fp8.buffer_options(keys))
    optimizer = OptimizerConfig(**fp8.optimizer_options(keys))
    assert (layers.fp8, layers.fp8_recipe, layers.fp8_param) == ("e4m3", recipe, param)
    assert (layers.fp8_amax_history_len, layers.fp8_amax_compute_algo) == (7, "max")
    assert buffers.fp8_param_gather == param
    assert optimizer.fp8_recipe == recipe
    reused = param and recipe == "mxfp8"
    assert buffers.reuse_grad_buf_for_mxfp8_param_ag == optimizer.reuse_grad_buf_for_mxfp8_param_ag == reused


def test_first_and_last_layers_reach_the_layers() -> None:
    keys = actor(first_last_layers_bf16=True, num_layers_at_start_in_bf16=2, num_layers_at_end_in_bf16=0)
    layers = TransformerConfig(**LAYERS, **fp8.transformer_options(keys))
    assert layers.first_last_layers_bf16
    assert (layers.num_layers_at_start_in_bf16, layers.num_layers_at_end_in_bf16) == (2, 0)


def test_stored_base_probabilities_know_their_precision() -> None:
    settings = {
        name: fp8.scoring_settings(actor(**keys))
        for name, keys in {
            "blockwise": {},
            "mxfp8": {"fp8_recipe": "mxfp8"},
            "e4m3": {"fp8": "e4m3"},
            "weights": {"fp8_param": True},
            "weights, bf16": {"fp8_param": True, "fp8_scoring": "bf16"},
            "ends": {"first_last_layers_bf16": True},
        }.items()
    }
    assert all(a != b for i, a in settings.items() for j, b in settings.items() if i < j)
    assert fp8.scoring_settings(actor(fp8_scoring="bf16")) == {}  # as without FP8: the same numbers


@pytest.mark.parametrize(
    ("recipe", "multiple"), [("delayed", 16), ("tensorwise", 16), ("blockwise", 128), ("mxfp8", 32)]
)
@pytest.mark.parametrize(("ranks", "context"), [(1, 1), (2, 1), (2, 2)])
def test_odd_token_counts_are_padded_for_every_recipe(recipe: str, multiple: int, ranks: int, context: int) -> None:
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": ranks > 1, "context_parallel_size": context}
    keys = actor(fp8_recipe=recipe, **layout)
    requests = [ScoreRequest(tuple(range(100 * i, 100 * i + 15 + 2 * i)), 3, 15 + 2 * i) for i in range(9)]
    packed = plan(requests, max_tokens=512, data_parallel_size=2, sequence_multiple=fp8.sequence_multiple(keys))
    batches = [batch for rank in packed.micro_batches for batch in rank]
    shares = [share_of(batch, rank, context) for batch in batches for rank in range(context)]
    assert {share.num_tokens % (ranks * multiple) for share in shares} == {0}
    assert sum(batch.num_tokens - batch.padding for batch in batches) == sum(r.stop - 1 for r in requests)
    for batch in batches:
        assert batch.source_row.max(initial=-1) < batch.num_tokens - batch.padding
