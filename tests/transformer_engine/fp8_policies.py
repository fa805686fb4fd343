"""Small policies in every precision, and what tests do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import te_on_cpu
import torch
from megatron.core import parallel_state
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import FloatArray, ScoreRequest, TrainSequence, UpdateResult
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights

VOCAB = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS: dict[str, PreTrainedConfig] = {
    "dense": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "experts": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True
    ),
}
_FP8 = {"fp8": "hybrid"}
_STORED = _FP8 | {"fp8_param": True, "use_distributed_optimizer": True}
PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "bf16, averages too": {"use_distributed_optimizer": True, "use_precision_aware_optimizer": True}
    | {"exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
    "delayed": _FP8 | {"fp8_recipe": "delayed", "fp8_scoring": "bf16"},
    "tensorwise": _FP8 | {"fp8_recipe": "tensorwise"},
    "blockwise": _FP8 | {"fp8_recipe": "blockwise"},
    "mxfp8": _FP8 | {"fp8_recipe": "mxfp8"},
    "tensorwise, FP8 weights": _STORED | {"fp8_recipe": "tensorwise"},
    "blockwise, FP8 weights": _STORED | {"fp8_recipe": "blockwise"},
    "mxfp8, FP8 weights": _STORED | {"fp8_recipe": "mxfp8"},
    "blockwise, scored in bf16": _FP8 | {"fp8_recipe": "blockwise", "fp8_scoring": "bf16"},
    "blockwise, FP8 weights, scored in bf16": _STORED | {"fp8_recipe": "blockwise", "fp8_scoring": "bf16"},
    "tensorwise, e4m3, recompute": {"fp8": "e4m3", "fp8_recipe": "tensorwise", "recompute_granularity": "full"},
    "delayed, recompute, longest history": _FP8
    | {"fp8_recipe": "delayed", "fp8_scoring": "bf16", "recompute_granularity": "full"}
    | {"fp8_amax_history_len": 4, "fp8_amax_compute_algo": "max"},
    "blockwise, first layer in bf16": _FP8
    | {"fp8_recipe": "blockwise", "first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 0},
}
"""Keys of the actor."""

TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.0, kl_coef=0.0, kl_type="low_var_kl")


def write_models(folder: Path) -> None:
    torch.manual_seed(0)
    for name, config in MODELS.items():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "mlp.gate.weight")):
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)


def requests(count: int = 3, longer: int = 0) -> list[ScoreRequest]:
    """Responses to one prompt, of odd lengths."""
    generator = np.random.default_rng(0)
    prompt = tuple(generator.integers(0, VOCAB, 11).tolist())
    tails = [tuple(generator.integers(0, VOCAB, 9 + longer + number).tolist()) for number in range(count)]
    return [ScoreRequest(prompt + tail, len(prompt), len(prompt) + len(tail)) for tail in tails]


def make_policy(folder: Path, precision: str, **keys: Any) -> MegatronPolicy:
    """With the folder's weights, on the GPU that its recipe needs."""
    actor = ActorConfig(**{"dtype": "bfloat16", "max_tokens_per_micro_batch": 512, **PRECISIONS[precision], **keys})
    te_on_cpu.pretend_gpu(actor.fp8_recipe)
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    shape = model_shape(HfFolder(folder).config())
    policy = MegatronPolicy(shape, actor, parallel.initialize(actor, seed=1), temperature=1.0)
    load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    return policy


def checkpoints(folder: Path, model: Path) -> CheckpointStore:
    return CheckpointStore(folder, model_shape(HfFolder(model).config()), keep_last=1)


def log_probs(policy: MegatronPolicy, wanted: list[ScoreRequest]) -> FloatArray:
    return np.concatenate([scores.log_probs for scores in policy.score(wanted)])


def update(
    policy: MegatronPolicy,
    wanted: list[ScoreRequest],
    old: FloatArray | None = None,
    lr: float = 1e-3,
    part_of_batch: float = 1.0,
) -> UpdateResult:
    """One step that rewards all of them. old: what they are compared with; by default scored now."""
    now = log_probs(policy, wanted) if old is None else old
    stops = np.cumsum([request.stop - request.start for request in wanted])
    sequences = [
        TrainSequence(r.token_ids, r.start, r.stop, part, np.ones(len(part), dtype=np.float32))
        for r, part in zip(wanted, np.split(now, stops[:-1]), strict=True)
    ]
    return policy.update(sequences, [part_of_batch / int(stops[-1])] * len(sequences), TERMS, lr)
