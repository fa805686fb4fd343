"""A configuration becomes an engine's settings in one way, wherever the engine is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rlpr.config.checks.engine import engine_settings
from megatron_rlpr.config.schema import Config
from megatron_rlpr.run.engines import training_request


def test_an_engine_takes_the_longest_prompt_of_the_run_and_its_response() -> None:
    config = Config()
    config.data.max_prompt_length, config.data.val_max_prompt_length, config.data.max_response_length = 20, 30, 7
    assert engine_settings(config).max_model_len == 27
    config.data.val_files = ["validation.parquet"]
    assert engine_settings(config).max_model_len == 37


@pytest.mark.parametrize(("chosen", "dtype"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_an_engine_computes_in_the_actors_precision_unless_told_otherwise(chosen: str, dtype: str) -> None:
    config = Config()
    config.actor.dtype, config.rollout.dtype = "float32", chosen
    assert engine_settings(config).dtype == dtype


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.8), ("top_k", 20), ("temperature", 0.7), ("temperature", 1.0)])
def test_training_knows_the_log_probs_of_all_tokens_wherever_the_engine_can_give_them(key: str, value: float) -> None:
    config = Config()
    setattr(config.rollout, key, value)
    sampling = training_request(config, [], 1).sampling
    assert sampling.full_log_probs(engine_settings(config).raw_log_probs)


def test_quantization_reaches_the_engine() -> None:
    config = Config()
    config.rollout.quantization, config.rollout.kv_cache_dtype = "fp8", "fp8"
    settings = engine_settings(config)
    assert (settings.quantization, settings.kv_cache_dtype) == ("fp8", "fp8")


def test_placement_changes_the_threads_of_an_engine_and_nothing_else() -> None:
    config = Config()
    config.model.path, config.trainer.threads_per_rank, config.rollout.cpus_per_engine = "model", 3, 2
    here = engine_settings(config)
    config.rollout.placement = "ray"
    assert engine_settings(config) == replace(here, threads=2)
    assert here.threads == 3
    assert Path(here.model_path) == Path.cwd() / "model"


@pytest.mark.parametrize(
    ("on_gpu", "placement", "keys", "expected"),
    [
        (True, "colocated", {}, (True, 0.75, False, 512)),
        (True, "ray", {}, (False, 0.4, False, 512)),
        (True, "colocated", {"sleep": "false"}, (False, 0.4, False, 512)),
        (False, "colocated", {}, (False, 0.4, True, 64)),
        (False, "colocated", {"sleep": "true", "enforce_eager": "false"}, (True, 0.75, False, 64)),
        (
            True,
            "colocated",
            {"gpu_memory_utilization": 0.6, "enforce_eager": "true", "max_num_seqs": 7},
            (True, 0.6, True, 7),
        ),
    ],
)
def test_what_is_not_set_follows_the_device_and_the_placement(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, placement: str, keys: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    config = Config()
    for name, value in {"placement": placement, **keys}.items():
        setattr(config.rollout, name, value)
    settings = engine_settings(config)
    assert (
        settings.sleep,
        settings.gpu_memory_utilization,
        settings.enforce_eager,
        settings.max_num_seqs,
    ) == expected
    assert settings.load_format == "dummy", "a run's first hand-over comes before its first request"
