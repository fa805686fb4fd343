"""The keys of the actor: how the policy is laid out, computed, trained and kept; a section of `config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_rlpr.config.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, BELOW_ONE, STEPS, TEXT, TOKENS, Bounds
from megatron_rlpr.config.key_field import key


@dataclass
class ActorConfig:
    """The Megatron-Core policy: layout, precision, optimizer."""

    tensor_model_parallel_size: int = key(1, "TP: ranks that share each layer", AT_LEAST_ONE)
    pipeline_model_parallel_size: int = key(1, "PP: ranks that share the stack of layers", AT_LEAST_ONE)
    virtual_pipeline_model_parallel_size: int = key(
        1, "VPP: parts that each PP rank holds; data goes through all ranks as often, and they idle less", AT_LEAST_ONE
    )
    pipeline_model_parallel_layout: str = key(
        "",
        "which layers make each of the PP x VPP parts, in the order of the layers: E embedding, t layer, L output "
        "head, e.g. 'Et*3|t*4|t*4|t*3L'; empty: as many layers in each",
        TEXT,
    )
    sequence_parallel: bool = key(False, "SP: shard activations between TP regions along the sequence")
    context_parallel_size: int = key(
        1,
        "CP: ranks that share the tokens of each micro-batch, and exchange keys and values in every layer",
        AT_LEAST_ONE,
    )
    expert_model_parallel_size: int = key(
        1, "EP: data-parallel ranks that share the experts of a mixture-of-experts model", AT_LEAST_ONE
    )
    expert_tensor_parallel_size: int = key(
        0,
        "ETP: ranks that share each expert of a mixture-of-experts model; 0: as many as share a layer (TP)",
        AT_LEAST_ZERO,
    )
    dtype: Literal["float32", "bfloat16"] = key("bfloat16", "compute precision; master weights and gradients stay fp32")
    fp8: Literal["", "e4m3", "hybrid"] = key("", "FP8 format of the linear layers (Transformer Engine)")
    fp8_recipe: Literal["auto", "delayed", "tensorwise", "blockwise", "mxfp8"] = key(
        "auto", "how FP8 values are scaled; auto: mxfp8 on GPUs of capability 10.0, blockwise on 9.0, else tensorwise"
    )
    fp8_scoring: Literal["fp8", "bf16"] = key(
        "fp8", "what scores and reference probabilities are computed in; fp8: as in training, the ratio begins at 1"
    )
    fp8_param: bool = key(False, "store the linear layers' weights in FP8 alone; the optimizer keeps them in fp32")
    fp8_amax_history_len: int = key(1, "steps whose maxima fp8_recipe=delayed looks at", Bounds(1, 65536))
    fp8_amax_compute_algo: Literal["most_recent", "max"] = key(
        "most_recent", "which of these maxima fp8_recipe=delayed scales by"
    )
    first_last_layers_bf16: bool = key(False, "compute the first and the last layers in bf16, those between in FP8")
    num_layers_at_start_in_bf16: int = key(1, "first layers that first_last_layers_bf16 keeps in bf16", AT_LEAST_ZERO)
    num_layers_at_end_in_bf16: int = key(1, "last layers that first_last_layers_bf16 keeps in bf16", AT_LEAST_ZERO)
    ppo_mini_batch_size: int = key(0, "prompts per optimizer step; 0: the whole batch", AT_LEAST_ZERO)
    max_tokens_per_micro_batch: int = key(
        8192,
        "token budget of one micro-batch (distinct tokens, after prefix sharing), which CP ranks share",
        TOKENS,
    )
    share_prefixes: bool = key(True, "compute a prefix that several sequences share only once")
    head_chunk_rows: int = key(256, "rows whose logits exist at the same time", AT_LEAST_ONE)
    lr: float = key(1e-6, "peak learning rate", Bounds(0, 10))
    lr_warmup_steps: int = key(0, "linear warm-up, in training steps", STEPS)
    lr_decay_style: Literal["constant", "linear", "cosine"] = key("constant", "learning rate after the warm-up")
    min_lr: float = key(0.0, "learning rate at the end of the decay", Bounds(0, 10))
    weight_decay: float = key(0.01, "AdamW weight decay", Bounds(0, 10))
    adam_beta1: float = key(0.9, "AdamW beta1", BELOW_ONE)
    adam_beta2: float = key(0.999, "AdamW beta2", BELOW_ONE)
    adam_eps: float = key(1e-8, "AdamW epsilon", Bounds(1e-30, 1))
    clip_grad: float = key(1.0, "global L2 norm to which gradients are clipped; 0: no clipping", AT_LEAST_ZERO)
    use_distributed_optimizer: bool = key(False, "shard the optimizer state over data-parallel ranks")
    use_precision_aware_optimizer: bool = key(
        False,
        "Transformer Engine's Adam keeps the fp32 weights, and its averages in the types below (distributed only)",
    )
    exp_avg_dtype: Literal["float32", "bfloat16"] = key("float32", "precision of the gradients' average")
    exp_avg_sq_dtype: Literal["float32", "bfloat16"] = key("float32", "precision of the squared gradients' average")
    offload: Literal["none", "optimizer", "all"] = key(
        "none",
        "what lies on the host while engines generate: nothing; the optimizer's fp32 weights and moments (gradient "
        "buffers are released, a KL reference policy is there whenever it is not used); the weights as well",
    )
    recompute_granularity: Literal["none", "selective", "full"] = key("none", "activation recompute")
    recompute_method: Literal["uniform", "block"] = key("uniform", "which layers recompute_granularity=full recomputes")
    recompute_num_layers: int = key(1, "layers per recomputed unit", AT_LEAST_ONE)

    @property
    def expert_tensor_size(self) -> int:
        """How many ranks share each expert."""
        return self.expert_tensor_parallel_size or self.tensor_model_parallel_size

    @property
    def token_ranks(self) -> int:
        """How many ranks have an equal part each of a micro-batch's tokens between its layers."""
        return self.context_parallel_size * (self.tensor_model_parallel_size if self.sequence_parallel else 1)
