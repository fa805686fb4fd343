"""Megatron's gradient buffers and optimizer around the policy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer
from megatron.core.transformer.module import Float16Module

from megatron_rlpr.actor import fp8
from megatron_rlpr.actor.model.tree_policy import TreePolicy
from megatron_rlpr.actor.optimizer_pytorch import begin
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.weights.local_parameters import take_unrounded


def in_their_precision(chunks: Sequence[TreePolicy]) -> list[torch.nn.Module]:
    """Every chunk, in bf16 inside the wrapper that rounds what goes in and widens what comes out."""
    return [Float16Module(chunk.config, chunk) if chunk.config.bf16 else chunk for chunk in chunks]


def wrap_for_training(
    chunks: Sequence[TreePolicy], actor: ActorConfig
) -> tuple[list[DistributedDataParallel], MegatronOptimizer]:
    """The policy's chunks inside Megatron's precision and data-parallel wrappers, and its AdamW optimizer.

    Master weights and gradients are fp32 in both precisions. The model's configuration is told how to finish
    gradients (sequence-parallel norms, tied embeddings across stages, data-parallel sum).
    """
    config = chunks[0].config
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=actor.use_distributed_optimizer,
        **fp8.buffer_options(actor),
    )
    wrapped = [DistributedDataParallel(config, buffers, chunk) for chunk in in_their_precision(chunks)]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=actor.lr,
            weight_decay=actor.weight_decay,
            adam_beta1=actor.adam_beta1,
            adam_beta2=actor.adam_beta2,
            adam_eps=actor.adam_eps,
            clip_grad=actor.clip_grad,
            bf16=config.bf16,
            params_dtype=DTYPES[actor.dtype],
            use_distributed_optimizer=actor.use_distributed_optimizer,
            use_precision_aware_optimizer=actor.use_precision_aware_optimizer,
            store_param_remainders=False,  # masters as a checkpoint of any layout holds them
            exp_avg_dtype=DTYPES[actor.exp_avg_dtype],
            exp_avg_sq_dtype=DTYPES[actor.exp_avg_sq_dtype],
            **fp8.optimizer_options(actor),
        ),
        wrapped,
    )
    for part in optimizer_parts(optimizer):
        begin(part)
        if _holds_masters(part):
            _masters_in_adam(part.optimizer)
    for weight in chain.from_iterable(chunk.parameters() for chunk in chunks):
        if hasattr(weight, "clear_high_precision_init_val"):
            weight.clear_high_precision_init_val()  # one in FP8 keeps its random initial values in bf16
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return wrapped, optimizer


def masters_from_weights(optimizer: MegatronOptimizer, chunks: Sequence[torch.nn.Module]) -> None:
    """The fp32 weights become those just loaded into the chunks, before their rounding where they are stored in FP8."""
    optimizer.reload_model_params()
    for part in optimizer_parts(optimizer):
        if _holds_masters(part):
            _masters_in_adam(part.optimizer)
            continue
        of_shards: Sequence[Any] = getattr(part, "shard_fp32_from_float16_groups", ())  # FP8 weights have them
        for weights, masters in zip(part.model_float16_groups if of_shards else (), of_shards, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                if (values := take_unrounded(weight)) is not None:
                    place = part._get_model_param_range_map(weight)["param"]
                    master.data.copy_(values.flatten()[place.start : place.end])


def _holds_masters(part: MegatronOptimizer) -> bool:
    """Whether Transformer Engine's Adam keeps the fp32 weights in its state, instead of Megatron."""
    return bool(part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8)


def _masters_in_adam(adam: Any) -> None:
    """They become the bf16 weights, with a state of their own from the beginning: a fresh one can be saved."""
    for weight in (weight for group in adam.param_groups for weight in group["params"]):
        if not adam.state[weight]:
            adam.initialize_state(weight, False)
        adam.set_scaled_state(weight, "master_param", weight.detach().float())


@torch.no_grad()
def weights_from_masters(optimizer: MegatronOptimizer) -> None:
    """The weights become what an optimizer step makes of its fp32 ones, where it keeps such. Collective.

    A checkpoint of weights in FP8 holds them rounded to FP8: another precision must not begin with those.
    """
    for part in optimizer_parts(optimizer):
        if part.config.reuse_grad_buf_for_mxfp8_param_ag:
            part._copy_main_params_to_param_buffer()
        elif _holds_masters(part):
            for weight, state in part.optimizer.state.items():
                weight.copy_(state["master_param"])
        elif not isinstance(part, FP32Optimizer):
            part._copy_main_params_to_model_params()
        if isinstance(part, DistributedOptimizer):
            part.start_param_sync_for_bucket_group_subset()


def set_learning_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    """Use lr for the next step, in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def apply_gradients(optimizer: MegatronOptimizer) -> float:
    """Clip, step and return the global gradient L2 norm before clipping.

    A norm that is not finite skips the step (and is returned as it is), so that one bad batch cannot ruin the weights.
    """
    if optimizer.prepare_grads():
        return float("inf")
    norm = float(optimizer.get_grad_norm())
    if not torch.isfinite(torch.tensor(norm)):
        return norm
    limit = optimizer.config.clip_grad
    if limit > 0:
        # Spread experts have an optimizer of their own: all are clipped by the one norm.
        for part in optimizer_parts(optimizer):
            clip_grad_by_total_norm_fp32(part.get_parameters(), limit, norm, _holds_masters(part))
    optimizer.step_with_ready_grads()
    return norm
