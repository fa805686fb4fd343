"""The policy as a Megatron-Core GPTModel, built from a Hugging Face configuration.

Two things differ from a stock GPTModel: attention runs over prefix trees and rotates by tree depth itself (so the
model has no position embedding of its own), and the output layer is applied to selected rows only, by
`selected_head`. The layers are Transformer Engine's or Megatron's own (`layer_kind`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt import gpt_layer_specs as layer_specs
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer.spec_utils import ModuleSpec, get_submodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rlpr.actor import fp8
from megatron_rlpr.actor.attention.core import TreeCoreAttention, TreeSeqParams
from megatron_rlpr.actor.model.gated_activation import GatedSilu
from megatron_rlpr.actor.model.layer_kind import transformer_engine_is_here
from megatron_rlpr.actor.model.norms import RMSNorm, with_post_norm
from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.weights.shape import ExpertShape, ModelShape

ACTIVATIONS = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class TreePolicy(GPTModel):
    """GPTModel whose last stage returns fp32 [R, 2] (log-prob, entropy) at the HeadRows of its TreeSeqParams."""

    def __init__(self, *args: Any, shape: ModelShape, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocab_size = shape.vocab_size
        self.final_softcap = shape.final_softcap
        if self.pre_process and shape.embedding_scale is not None:
            self.embedding.register_forward_hook(partial(_scaled, factor=shape.embedding_scale))

    def _preprocess(self, *args: Any, packed_seq_params: TreeSeqParams, **kwargs: Any) -> tuple[Any, ...]:
        """Padding enters the layers as zeros, and stays zero in them: it is in no scale of FP8 values."""
        hidden, *others = super()._preprocess(*args, packed_seq_params=packed_seq_params, **kwargs)
        if hidden is not None and packed_seq_params.padding:
            rank = parallel_state.get_tensor_model_parallel_rank() if self.config.sequence_parallel else 0
            before = packed_seq_params.num_tokens - packed_seq_params.padding - rank * len(hidden)
            real = min(max(before, 0), len(hidden))
            hidden = F.pad(hidden[:real], (0, 0, 0, 0, 0, len(hidden) - real))
        return hidden, *others

    def _postprocess(
        self, hidden_states: torch.Tensor, *_: Any, packed_seq_params: TreeSeqParams, **__: Any
    ) -> torch.Tensor:
        if not self.post_process:
            return hidden_states
        head = packed_seq_params.head
        if self.config.sequence_parallel:
            hidden = mappings.gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=True)
        else:
            hidden = mappings.copy_to_tensor_model_parallel_region(hidden_states)
        # A token with several successors is in several rows: on a GPU, an embedding's gradient adds them in fp32 and in
        # one order, index_select's in bf16 by atomics.
        rows = F.embedding(head.source_rows, hidden[:, 0])
        of_rows = (head.temperature, head.chunk_rows, self.final_softcap)
        return selected_log_probs(rows, self.output_weight(), head.targets, self.vocab_shard(), *of_rows)

    def output_weight(self) -> torch.Tensor:
        """This rank's [padded vocabulary / TP, hidden] output weight (the embedding, when tied)."""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight

    def vocab_shard(self) -> VocabShard:
        """Which token ids this rank's output weight holds."""
        rows = self.output_weight().shape[0]
        first = parallel_state.get_tensor_model_parallel_rank() * rows
        several = parallel_state.get_tensor_model_parallel_world_size() > 1
        group = parallel_state.get_tensor_model_parallel_group() if several else None
        return VocabShard(first, max(0, min(rows, self.real_vocab_size - first)), group)


def _scaled(_: torch.nn.Module, __: Any, embeddings: torch.Tensor, factor: float) -> torch.Tensor:
    """A forward hook; the factor is rounded to the embeddings' precision, as transformers does."""
    return embeddings * torch.tensor(factor, dtype=embeddings.dtype, device=embeddings.device)


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """The vocabulary rounded up so that every tensor-parallel rank holds the same number of rows."""
    return -(-vocab_size // tensor_parallel_size) * tensor_parallel_size


def transformer_config(shape: ModelShape, actor: ActorConfig, own_layers: bool = False) -> TransformerConfig:
    """Megatron's configuration of the policy. Fused kernels are on only where CUDA is; no dropout, no other fusion."""
    dtype, fused = DTYPES[actor.dtype], torch.cuda.is_available()
    granularity = None if actor.recompute_granularity == "none" else actor.recompute_granularity
    whole_layers = granularity == "full"
    experts = _expert_options(shape.experts, actor, own_layers) if shape.experts else {}
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        layernorm_zero_centered_gamma=shape.norm_adds_one,
        qk_layernorm=shape.qk_norm,
        softmax_scale=shape.query_scale,
        gated_linear_unit=True,
        activation_func=ACTIVATIONS[shape.activation],
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=actor.tensor_model_parallel_size,
        pipeline_model_parallel_size=actor.pipeline_model_parallel_size,
        pipeline_model_parallel_layout=actor.pipeline_model_parallel_layout or None,
        context_parallel_size=actor.context_parallel_size,
        sequence_parallel=actor.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Micro-batches have different numbers of tokens, so the stages exchange shapes before activations;
        # Megatron asserts this dispatcher for that, also for dense models.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        recompute_granularity=granularity,
        recompute_method=actor.recompute_method if whole_layers else None,
        recompute_num_layers=actor.recompute_num_layers if whole_layers else None,
        use_cpu_initialization=not fused,
        bias_activation_fusion=fused and shape.activation == "silu",
        use_te_activation_func=not fused and shape.activation == "silu",  # a module of ours, see _block_spec
        bias_dropout_fusion=fused,
        persist_layer_norm=fused,
        **_interleaving_options(actor),
        **fp8.transformer_options(actor),
        **experts,
    )


def _interleaving_options(actor: ActorConfig) -> dict[str, Any]:
    """With two stages, both directions lead to the same rank: sent as one batch, which is Megatron's default, an
    activation would be taken for a gradient wherever the two have the same shape."""
    if actor.virtual_pipeline_model_parallel_size == 1:
        return {}
    size = actor.virtual_pipeline_model_parallel_size
    return {"virtual_pipeline_model_parallel_size": size, "overlap_p2p_comm": True, "batch_p2p_comm": False}


def _expert_options(experts: ExpertShape, actor: ActorConfig, own_layers: bool) -> dict[str, Any]:
    """Experts as in transformers: no token is dropped, and no loss balances them."""
    return {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_topk": experts.top_k,
        # The softmax of the chosen logits is the softmax of all, divided by the sum of the chosen.
        "moe_router_pre_softmax": not experts.normalised,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_grouped_gemm": transformer_engine_is_here() and not own_layers,
        "expert_model_parallel_size": actor.expert_model_parallel_size,
        "expert_tensor_parallel_size": actor.expert_tensor_size,
    }


def build_chunks(shape: ModelShape, actor: ActorConfig, own_layers: bool = False) -> list[TreePolicy]:
    """This rank's parts of the policy, with random weights, on this rank's device, in actor.dtype.

    In the order data flows through them: one, or with a virtual pipeline one for each round through the stages. They
    share one configuration. Needs Megatron's process groups (`parallel.initialize`). own_layers: Megatron's own, also
    where Transformer Engine is.
    """
    config = transformer_config(shape, actor, own_layers)
    rounds = config.virtual_pipeline_model_parallel_size
    return [_build_chunk(config, shape, own_layers, number) for number in ([None] if rounds is None else range(rounds))]


def _build_chunk(config: TransformerConfig, shape: ModelShape, own_layers: bool, vp_stage: int | None) -> TreePolicy:
    where: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = TreePolicy(
        config=config,
        transformer_layer_spec=_block_spec(config, shape, own_layers, vp_stage),
        vocab_size=padded_vocab_size(shape.vocab_size, config.tensor_model_parallel_size),
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="none",
        vp_stage=vp_stage,
        shape=shape,
    )
    return model.cuda() if torch.cuda.is_available() else model


def _block_spec(
    config: TransformerConfig, shape: ModelShape, own_layers: bool, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Stock layers with tree attention; Megatron's own with a norm that knows sequence parallelism."""
    kind: dict[str, Any] = {"num_experts": config.num_moe_experts, "qk_layernorm": config.qk_layernorm}
    norm: Any = RMSNorm
    if transformer_engine_is_here() and not own_layers:
        from megatron.core.extensions.transformer_engine import TENorm

        norm = TENorm
        layer = layer_specs.get_gpt_layer_with_transformer_engine_spec(**kind, moe_grouped_gemm=config.moe_grouped_gemm)
    else:
        layer = layer_specs.get_gpt_layer_local_spec(**kind, normalization="RMSNorm")
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
        if shape.experts:
            # In checkpoints it goes by the name of Transformer Engine's norm, which is not fused with a router.
            del layer.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    attention = get_submodules(layer.submodules.self_attention)
    attention.core_attention = ModuleSpec(module=TreeCoreAttention, params={"shape": shape})
    if shape.qk_norm and norm is RMSNorm:
        attention.q_layernorm = attention.k_layernorm = norm
    feed_forward = get_submodules(layer.submodules.mlp)
    if config.use_te_activation_func:
        gated = get_submodules(feed_forward.experts) if shape.experts else feed_forward
        gated.activation_func = GatedSilu
    if shape.post_norms:
        attention.linear_proj = with_post_norm(attention.linear_proj, norm)
        feed_forward.linear_fc2 = with_post_norm(feed_forward.linear_fc2, norm)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)
