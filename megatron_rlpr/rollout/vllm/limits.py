"""What an engine can run, checked from config.json alone, before any process group or engine starts.

An engine that fails while it starts leaves the other ranks waiting in a collective; these checks give every rank the
same clear error first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.requests import GenerationRequest
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.hf_folder import HfFolder

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's CPU attention kernels (vllm 0.32.0, CPUAttentionBackend.get_supported_head_sizes)."""

CPU_EXPERT_MULTIPLE = 32
"""What the hidden size of a mixture of experts must be a multiple of on CPU (vllm 0.32.0, CPUUnquantizedExperts)."""

CPU_BLOCK_SIZE = 32
"""Tokens per key/value block on CPU: the fewest the kernels take, since prompts share whole blocks only."""


def read_model_config(model_path: str | Path) -> PretrainedConfig:
    """The HF configuration of a local folder, defaults of its architecture filled in; UserError when there is none."""
    folder = Path(model_path)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.path={model_path}: no config.json there; give a Hugging Face folder (config.json, tokenizer, "
            "safetensors)"
        )
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # of a field of a wrong type the libraries raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder / 'config.json'}: cannot be read as a model configuration: {reason:.300}") from error


def check_engine_fits(config: PretrainedConfig, settings: EngineSettings, *, on_cpu: bool) -> None:
    """Raise UserError when an engine with these settings cannot serve one sequence of its max_model_len tokens.

    That the ranks divide the model and that it has the positions is checked for actor and engine (config.checks.model).
    """
    heads, tensor_parallel = config.num_attention_heads, settings.tensor_parallel_size
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    longest = settings.max_model_len
    if settings.quantization == "fp8" and settings.dtype != "bfloat16":
        raise UserError(f"rollout.quantization=fp8 needs rollout.dtype=bfloat16, and the engine's is {settings.dtype}")
    if settings.enable_expert_parallel and not _experts(config):
        raise UserError("rollout.enable_expert_parallel=true: the model has no experts, remove it")
    if not on_cpu:
        return
    for key, usual in (("quantization", "none"), ("kv_cache_dtype", "auto")):
        if (value := getattr(settings, key)) != usual:
            raise UserError(f"rollout.{key}={value} needs a CUDA GPU, and none is visible: set rollout.{key}={usual}")
    if head_dim not in CPU_HEAD_DIMS:
        raise UserError(f"the model's head_dim is {head_dim}; vLLM on CPU takes {', '.join(map(str, CPU_HEAD_DIMS))}")
    if getattr(config, "num_local_experts", None) and config.hidden_size % CPU_EXPERT_MULTIPLE:
        raise UserError(
            f"the model's hidden_size is {config.hidden_size}; vLLM's experts on CPU need a multiple of "
            f"{CPU_EXPERT_MULTIPLE}"
        )
    shard_heads = max(1, key_value_heads // tensor_parallel)
    blocks = -(-longest // CPU_BLOCK_SIZE) + 1
    values = 2 * config.num_hidden_layers * shard_heads * head_dim * blocks * CPU_BLOCK_SIZE
    needed = values * settings.torch_dtype.itemsize
    if settings.kv_cache_gb * 2**30 < needed:
        raise UserError(
            f"rollout.kv_cache_gb={settings.kv_cache_gb:g} cannot hold one sequence of {longest} tokens; it takes "
            f"{needed / 2**30:.3f} GiB"
        )


def _experts(config: PretrainedConfig) -> int:
    """Mixtral's name for their number, or Qwen's."""
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0


def end_of_sequence_ids(
    model_path: str | Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Every token id that ends a response: by generation_config.json (else config.json) and by the tokenizer.

    Raises UserError for an id that is none of the model's.
    """
    generation = HfFolder(model_path).generation_config()
    configured = config.eos_token_id if generation is None else generation.get("eos_token_id")
    where = f"{model_path}/{'config.json' if generation is None else 'generation_config.json'}: eos_token_id"
    ids = [] if configured is None else configured if isinstance(configured, list) else [configured]
    by_place = [(where, token_id) for token_id in ids]
    if tokenizer.eos_token_id is not None:
        by_place.append((f"{model_path}: the tokenizer's eos_token {tokenizer.eos_token!r}", tokenizer.eos_token_id))
    for place, token_id in by_place:
        if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
            known = f"the model's token ids are integers below its vocab_size={config.vocab_size}"
            raise UserError(f"{place} is {token_id!r:.80}, but {known}: name one of them")
    return tuple(sorted({token_id for _, token_id in by_place}))


def check_requests(requests: Sequence[GenerationRequest], max_tokens: int, max_model_len: int, vocab_size: int) -> None:
    """UserError for the first prompt that is empty, leaves no room for its response, or holds an unknown token id."""
    for number, request in enumerate(requests):
        name = request.label or f"request {number}"
        length = len(request.prompt_token_ids)
        if length == 0:
            raise UserError(f"{name}: the prompt has no tokens")
        if length + max_tokens > max_model_len:
            raise UserError(
                f"{name}: {length} prompt tokens and up to {max_tokens} response tokens exceed the engine's "
                f"{max_model_len}; drop the prompt or raise the prompt length limit of the run"
            )
        if max(request.prompt_token_ids) >= vocab_size or min(request.prompt_token_ids) < 0:
            raise UserError(
                f"{name}: token ids reach beyond the model's vocabulary of {vocab_size}; use the model's own tokenizer"
            )
