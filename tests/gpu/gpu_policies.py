"""Small models of every family, their policy on this GPU, and what transformers says of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import ScoreRequest, TokenScores, TrainSequence, UpdateResult
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.shape import ModelShape

VOCAB = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.06,
}
EXPERTS = {"num_experts_per_tok": 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "mistral": MistralConfig(**SIZES, sliding_window=16),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, sliding_window=16, query_pre_attn_scalar=32),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, **EXPERTS),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, head_dim=32, moe_intermediate_size=128, num_experts=4, **EXPERTS),
}
TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.0, kl_coef=0.0, kl_type="low_var_kl")

needs_transformer_engine = pytest.mark.skipif(
    find_spec("transformer_engine") is None, reason="needs Transformer Engine, which is not installed here"
)


@cache
def folder(family: str) -> Path:
    """A Hugging Face folder with random weights."""
    torch.manual_seed(0)
    path = Path(mkdtemp(prefix=f"rlpr_gpu_{family}_"))
    AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(path)
    return path


def shape_of(family: str) -> ModelShape:
    return model_shape(HfFolder(folder(family)).config())


def make_policy(family: str = "llama", **options: Any) -> MegatronPolicy:
    """The policy with the weights of `folder`, on this GPU."""
    actor = ActorConfig(**{"dtype": "float32", "max_tokens_per_micro_batch": 512, **options})
    policy = MegatronPolicy(shape_of(family), actor, parallel.initialize(actor, seed=1), temperature=1.0)
    load_hf_weights(policy.chunks, shape_of(family), folder(family))
    policy.weights_changed()
    return policy


def requests(odd: int = 0) -> list[ScoreRequest]:
    """Six responses to one prompt, longer than the windows; odd more tokens in the last."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, 40).tolist()
    lengths = [20 + i + (odd if i == 5 else 0) for i in range(6)]
    return [ScoreRequest(tuple(prompt + rng.integers(0, VOCAB, n).tolist()), 40, 40 + n) for n in lengths]


def flat(scores: Sequence[TokenScores]) -> np.ndarray:
    """All log-probs in order."""
    return np.concatenate([score.log_probs for score in scores])


@torch.no_grad()
def reference_log_probs(family: str, wanted: Sequence[ScoreRequest]) -> np.ndarray:
    """What transformers computes in fp32, flat."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder(family), **options).cuda()
    found = []
    for request in wanted:
        ids = torch.tensor([request.token_ids], device="cuda")
        log_probs = model(ids).logits[0].float().log_softmax(-1)
        rows = torch.arange(request.start - 1, request.stop - 1, device="cuda")
        found.append(log_probs[rows, ids[0, request.start : request.stop]].cpu().numpy())
    return np.concatenate(found)


def rewarded(policy: MegatronPolicy, wanted: Sequence[ScoreRequest]) -> list[TrainSequence]:
    """The responses with advantage 1 and the policy's own log-probs as old ones."""
    return [
        TrainSequence(r.token_ids, r.start, r.stop, s.log_probs, np.ones(r.stop - r.start, dtype=np.float32))
        for r, s in zip(wanted, policy.score(wanted), strict=True)
    ]


def end_groups() -> None:
    """Before another policy is made in the same test."""
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def difference_of_a_resumed_policy(folder: Path, **options: Any) -> float:
    """The largest difference of log-probs between two updates, and one, a checkpoint in folder, and the other."""
    policy = make_policy("qwen2", **options)
    sequences = rewarded(policy, requests())
    update(policy, sequences)
    CheckpointStore(folder, shape_of("qwen2"), keep_last=1).save(1, policy, {"step": 1})
    update(policy, sequences)
    undisturbed = flat(policy.score(requests()))
    end_groups()
    policy = make_policy("qwen2", **options)
    CheckpointStore(folder, shape_of("qwen2"), keep_last=1).load(1, policy)
    update(policy, sequences)
    return float(np.abs(flat(policy.score(requests())) - undisturbed).max())


def update(policy: MegatronPolicy, sequences: Sequence[TrainSequence], lr: float = 1e-3) -> UpdateResult:
    weight = 1 / sum(s.stop - s.start for s in sequences)
    return policy.update(sequences, [weight] * len(sequences), TERMS, lr=lr)
