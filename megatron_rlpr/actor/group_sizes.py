"""How many ranks each process group of a rank has, before any is made.

The groups are those of Megatron-Core's `initialize_model_parallel`; tests compare this list with what it makes.
"""

from __future__ import annotations

from megatron_rlpr.config.schema import ActorConfig


def group_sizes(actor: ActorConfig, world_size: int) -> list[int]:
    """Sizes of all groups that the first rank is a member of, the world's own included. world_size: ranks in all."""
    tensor, pipeline = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    context, experts = actor.context_parallel_size, actor.expert_model_parallel_size
    expert_tensor = actor.expert_tensor_size
    data_and_context = world_size // (tensor * pipeline)
    data = data_and_context // context
    of_experts = expert_tensor * experts
    expert_data = world_size // (of_experts * pipeline)
    return [
        *(world_size, world_size),  # the world, and the ranks that share one distributed optimizer
        *(data_and_context, data_and_context, data, data),  # NCCL's and gloo's
        *(tensor, pipeline, context, tensor * pipeline, min(pipeline, 2), 1),  # at last: embeddings, positions
        *(tensor * data_and_context, tensor * data, tensor * context),
        *(experts, expert_tensor, of_experts, of_experts * pipeline, of_experts * pipeline),
        *(expert_data, expert_data),
        *(1, 1),  # rematerialised weights, of layers and of experts
    ]
