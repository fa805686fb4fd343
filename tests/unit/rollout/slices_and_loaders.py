"""vLLM's own loaders against this project's rule, for every rank of engines of 1 to 8 ranks, in one process.

The groups of a rank are replaced by their sizes, which is all a model asks for while it is made and loaded. The process
cannot run an engine afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from megatron_rlpr.rollout.vllm.slice_load import engine_places, fill, parameter_shapes
from megatron_rlpr.weights.architectures import hf_manifest, model_shape
from megatron_rlpr.weights.engine_slices import EngineRank

SIZES = (1, 2, 4, 8)
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_key_value_heads": 2,
    "vocab_size": 130,
}
_EXPERTS = {"num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "hidden_size": 256},  # vLLM: heads of hidden size / number
    "Qwen3ForCausalLM": {"model_type": "qwen3", "num_key_value_heads": 1, "vocab_size": 1000},
    "MistralForCausalLM": {"model_type": "mistral", "num_key_value_heads": 8, "vocab_size": 256},
    "Gemma2ForCausalLM": {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
    },
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 3, "sliding_window": None} | _EXPERTS,
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    | _EXPERTS,
}


def differences(folder: Path) -> dict[str, list[str]]:
    """By family and engine size, the parameters of all ranks that vLLM's loaders fill otherwise than the rule does."""
    found = {}
    for architecture, fields in FAMILIES.items():
        config = {**_COMMON, **fields, "architectures": [architecture], "dtype": "bfloat16"}
        (folder / architecture).mkdir()
        (folder / architecture / "config.json").write_text(json.dumps(config))
        found.update(_of_family(folder / architecture, config))
    return found


def _of_family(folder: Path, config: dict[str, Any]) -> dict[str, list[str]]:
    from vllm.engine.arg_utils import EngineArgs

    shape = model_shape(config)
    generator = torch.Generator().manual_seed(0)
    full = {n: torch.randn(s, generator=generator).bfloat16() for n, s in hf_manifest(shape).items()}
    arguments = {"skip_tokenizer_init": True, "load_format": "dummy", "dtype": "bfloat16", "enforce_eager": True}
    vllm_config = EngineArgs(model=str(folder), max_model_len=64, **arguments).create_engine_config()
    found = {}
    for size in SIZES:
        different = []
        for rank in range(size):
            loaded = _loaded_by_vllm(vllm_config, EngineRank(rank, size), full)
            ours = _filled(shape, EngineRank(rank, size), full)
            different += [
                f"{rank} {name}"
                for name in sorted(loaded.keys() | ours.keys())
                if name not in loaded or name not in ours or not _same_bits(loaded[name], ours[name])
            ]
        found[f"{config['architectures'][0]} {size}"] = different
    return found


def _loaded_by_vllm(vllm_config: Any, engine: EngineRank, full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    vllm_config.parallel_config.tensor_parallel_size = engine.size
    for name in ("_TP", "_EP", "_WORLD"):
        setattr(parallel_state, name, _group(engine))
    for name in ("_PP", "_DP", "_PCP", "_DCP"):
        setattr(parallel_state, name, _group(EngineRank(0, 1)))
    vllm_config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(vllm_config), set_default_torch_dtype(torch.bfloat16), torch.no_grad():
        model = initialize_model(vllm_config)
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # what no loader writes stays visible
        model.load_weights(iter(full.items()))
    return dict(model.named_parameters())


def _group(engine: EngineRank) -> SimpleNamespace:
    device = SimpleNamespace(size=lambda: engine.size, rank=lambda: engine.rank)
    ranks = {"rank_in_group": engine.rank, "world_size": engine.size, "rank": engine.rank, "ranks": range(engine.size)}
    ends = {"is_first_rank": True, "is_last_rank": True, "unique_name": "", "use_message_queue_broadcaster": False}
    return SimpleNamespace(**ranks, **ends, device_group=device, cpu_group=None)


def _filled(shape: Any, engine: EngineRank, full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    places = engine_places(shape, engine)
    filled = {
        name: torch.full(size, torch.nan, dtype=torch.bfloat16) for name, size in parameter_shapes(places).items()
    }
    for name, place in places.items():
        fill(filled[place.parameter], place.cut.of(full[name]), place)
    return filled


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.data.view(torch.int16), other.view(torch.int16))
