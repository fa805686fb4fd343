"""FP8 that a GPU, a model or another key does not go with is refused before anything starts, with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checked_runs import Run, refusal

from megatron_rlpr.config.checks import check


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A GPU of some capability, with Transformer Engine, as far as the checks ask."""

    def pretend(capability: tuple[int, int] = (9, 0), cuda: str = "13.0") -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
        monkeypatch.setattr("torch.version.cuda", cuda)
        monkeypatch.setattr("megatron_rlpr.actor.model.layer_kind.transformer_engine_is_here", lambda: True)

    return pretend


FP8 = ["actor.fp8=hybrid", "actor.dtype=bfloat16"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["actor.fp8_recipe=tensorwise", "actor.first_last_layers_bf16=true"],
        ["actor.fp8_recipe=delayed", "actor.fp8_scoring=bf16", "actor.fp8_amax_history_len=16"],
        ["actor.fp8_param=true", "actor.use_distributed_optimizer=true", "actor.recompute_granularity=full"],
    ],
)
def test_fp8_is_taken_where_the_gpu_computes_it(run: Run, gpu: Callable[..., None], options: list[str]) -> None:
    gpu()
    check(run(*FP8, *options), 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["actor.fp8_recipe=delayed"], ["delayed", "base probabilities", "actor.fp8_scoring=bf16"]),
        (
            ["actor.fp8_recipe=delayed", "actor.fp8_scoring=bf16", "actor.first_last_layers_bf16=true"],
            ["delayed", "all layers", "actor.first_last_layers_bf16=false"],
        ),
        (
            ["actor.fp8_recipe=delayed", "actor.fp8_scoring=bf16", "actor.fp8_param=true"],
            ["delayed", "checkpoint", "actor.fp8_param=false"],
        ),
        (
            ["actor.fp8_param=true", "actor.use_distributed_optimizer=true", "actor.offload=all"],
            ["actor.offload=all", "actor.offload=optimizer"],
        ),
        (["actor.fp8_param=true"], ["actor.fp8_param=true", "actor.use_distributed_optimizer=true"]),
        (["actor.fp8_recipe=mxfp8"], ["mxfp8", "10.0", "9.0", "blockwise or tensorwise"]),
        (["actor.fp8_amax_history_len=4"], ["actor.fp8_amax_history_len=4", "no effect", "delayed"]),
        (["actor.num_layers_at_end_in_bf16=2"], ["num_layers_at_end_in_bf16=2", "first_last_layers_bf16=true"]),
        (
            ["actor.max_tokens_per_micro_batch=127", "data.max_prompt_length=64", "data.max_response_length=63"],
            ["multiple of 128", "at least 128"],
        ),
        (
            ["actor.first_last_layers_bf16=true", "actor.num_layers_at_start_in_bf16=999"],
            ["num_layers_at_start_in_bf16=999", "layers of a pipeline stage"],
        ),
    ],
)
def test_fp8_that_cannot_work_is_refused_with_the_reason(
    run: Run, gpu: Callable[..., None], options: list[str], named: list[str]
) -> None:
    gpu()
    message = refusal(run(*FP8, *options))
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize(
    ("capability", "cuda", "recipe", "named"),
    [
        ((8, 9), "13.0", "blockwise", ["9.0", "8.9", "choose tensorwise"]),
        ((9, 0), "12.8", "blockwise", ["CUDA 12.9", "12.8"]),
        ((12, 0), "13.0", "mxfp8", ["below 12.0", "choose tensorwise"]),
        ((8, 0), "13.0", "auto", ["8.9", "8.0", "actor.fp8= (empty)"]),
    ],
)
def test_gpus_and_cuda_versions_without_a_recipe_are_named(
    run: Run, gpu: Callable[..., None], capability: tuple[int, int], cuda: str, recipe: str, named: list[str]
) -> None:
    gpu(capability, cuda)
    message = refusal(run(*FP8, f"actor.fp8_recipe={recipe}"))
    assert [part for part in named if part not in message] == [], message


def test_delayed_scaling_is_refused_in_a_virtual_pipeline(run: Run, gpu: Callable[..., None]) -> None:
    gpu()
    delayed = ["actor.fp8_recipe=delayed", "actor.fp8_scoring=bf16", "actor.pipeline_model_parallel_size=2"]
    message = refusal(run(*FP8, *delayed, "actor.virtual_pipeline_model_parallel_size=2"), 2)
    assert "another order: set actor.virtual_pipeline_model_parallel_size=1 or choose another recipe" in message


def test_fp8_sizes_are_checked_per_rank(run: Run, gpu: Callable[..., None]) -> None:
    gpu()
    fp8 = ["actor.fp8=e4m3", "actor.tensor_model_parallel_size=4"]
    check(run(*fp8), 4)
    gpu((10, 0))
    message = refusal(run(*fp8, "actor.fp8_recipe=mxfp8", hf={"intermediate_size": 4 * 48}), 4)
    assert "multiples of 32" in message
    assert "feed-forward size / 4 ranks" in message


@pytest.mark.parametrize(
    "name", ["fp8_recipe=mxfp8", "fp8_param=true", "fp8_scoring=bf16", "first_last_layers_bf16=true"]
)
def test_fp8_keys_without_fp8_are_refused(run: Run, name: str) -> None:
    assert f"actor.{name} has no effect without actor.fp8" in refusal(run(f"actor.{name}"))
