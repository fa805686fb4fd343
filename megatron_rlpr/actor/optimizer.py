"""Megatron's gradient buffers and optimizer around the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module

from megatron_rlpr.actor.model.tree_policy import TreePolicy
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import DTYPES


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
        grad_reduce_in_fp32=True, use_distributed_optimizer=actor.use_distributed_optimizer
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
        ),
        wrapped,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return wrapped, optimizer


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
            clip_grad_by_total_norm_fp32(part.get_parameters(), limit, norm)
    optimizer.step_with_ready_grads()
    return norm
