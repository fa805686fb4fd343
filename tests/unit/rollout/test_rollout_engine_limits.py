"""What an engine cannot run is refused by one clear message before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from tiny_models import EOS, EOS_IDS, TOKENIZER, save_llama
from transformers import AutoTokenizer, LlamaConfig

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.engine import QUANTIZATIONS
from megatron_rlpr.rollout.vllm.limits import check_engine_fits, check_requests, end_of_sequence_ids, read_model_config
from megatron_rlpr.types import UserError


def fits(**changes: object) -> None:
    config = LlamaConfig(
        num_attention_heads=4, num_key_value_heads=2, hidden_size=128, head_dim=32, max_position_embeddings=512
    )
    for name in ("head_dim", "num_key_value_heads", "hidden_size", "num_local_experts"):
        if name in changes:
            setattr(config, name, changes.pop(name))
    on_cpu = changes.pop("on_cpu", True)
    check_engine_fits(config, replace(EngineSettings("model", "float32", 256), **changes), on_cpu=on_cpu)


def test_a_model_that_fits_is_accepted() -> None:
    fits()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 24}, r"head_dim is 24; vLLM on CPU takes 32, 64"),
        (
            {"hidden_size": 80, "num_local_experts": 4},
            r"hidden_size is 80; vLLM's experts on CPU need a multiple of 32",
        ),
        (
            {"quantization": "fp8", "dtype": "bfloat16"},
            r"rollout\.quantization=fp8 needs a CUDA GPU.*set rollout\.quantization=none",
        ),
        ({"kv_cache_dtype": "fp8"}, r"rollout\.kv_cache_dtype=fp8 needs a CUDA GPU.*set rollout\.kv_cache_dtype=auto"),
        (
            {"quantization": "fp8", "on_cpu": False},
            r"rollout\.quantization=fp8 needs rollout\.dtype=bfloat16, and the engine's is float32",
        ),
        ({"kv_cache_gb": 0.004}, r"rollout\.kv_cache_gb=0\.004 cannot hold one sequence of 256 tokens"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fits(**changes)


def test_the_sizes_of_the_cpu_kernels_bind_no_gpu_and_those_of_experts_no_dense_model() -> None:
    fits(head_dim=24, on_cpu=False, kv_cache_gb=0.0)
    fits(hidden_size=80, num_local_experts=4, on_cpu=False)
    fits(hidden_size=80)


def test_a_gpu_takes_fp8_by_names_that_vllm_has() -> None:
    from vllm.config.cache import CacheDType
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES

    fits(quantization="fp8", kv_cache_dtype="fp8", dtype="bfloat16", on_cpu=False)
    assert QUANTIZATIONS["fp8"] in ONLINE_QUANT_SHORTHAND_NAMES
    assert {"auto", "fp8"} <= set(get_args(CacheDType))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path=.*nothing: no config\.json"):
        read_model_config(tmp_path / "nothing")


def test_every_configured_end_of_sequence_ends_a_response(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", seed=0)
    config, tokenizer = read_model_config(folder), AutoTokenizer.from_pretrained(TOKENIZER)
    assert end_of_sequence_ids(folder, config, tokenizer) == (*sorted(EOS_IDS), EOS)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert end_of_sequence_ids(folder, config, tokenizer) == (7, EOS)
    (folder / "generation_config.json").unlink()
    config.eos_token_id = 9
    assert end_of_sequence_ids(folder, config, tokenizer) == (9, EOS)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ((), "prompt 3: the prompt has no tokens"),
        ((1,) * 57, "prompt 3: 57 prompt tokens and up to 8 response tokens exceed the engine's 64"),
        ((1, 100), "prompt 3: token ids reach beyond the model's vocabulary of 100"),
        ((-1, 1), "prompt 3: token ids reach beyond"),
    ],
)
def test_a_prompt_the_engine_cannot_take_is_named(token_ids: tuple[int, ...], message: str) -> None:
    good = GenerationRequest((1, 99) * 28, seed=0, label="prompt 2")
    check_requests([good], max_tokens=8, max_model_len=64, vocab_size=100)
    with pytest.raises(UserError, match=message):
        check_requests(
            [good, GenerationRequest(token_ids, seed=0, label="prompt 3")],
            max_tokens=8,
            max_model_len=64,
            vocab_size=100,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"max_tokens": 0}, "max_tokens of a response is 0"),
    ],
)
def test_impossible_sampling_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingSettings(**settings)
