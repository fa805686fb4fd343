"""Logits of the Megatron policy, for comparing it with transformers. Training never builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.types import ScoreRequest


def megatron_logits(policy: MegatronPolicy, token_ids: Sequence[int]) -> torch.Tensor | None:
    """fp32 [T - 1, vocabulary]: the logits after every token but the last, on the last stage; None on other ranks.

    All ranks call it together; the policy's temperature must be 1 and sequence parallelism off. The hidden states are
    taken from the very forward pass that scoring does. With data parallelism one replica sees the prompt, the others
    (which may hold its experts) return None.
    """
    captured: list[torch.Tensor] = []
    seen: list[int] = []

    def note(_: torch.nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        seen.extend(inputs["input_ids"][0].tolist())

    def keep(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
        captured.append(output.detach())

    last = policy.chunks[-1]
    hooks = (last.register_forward_pre_hook(note, with_kwargs=True), last.decoder.register_forward_hook(keep))
    try:
        policy.score([ScoreRequest(tuple(token_ids), 1, len(token_ids))])
    finally:
        for hook in hooks:
            hook.remove()
    if not policy.layout.is_last_stage or seen[: len(token_ids) - 1] != list(token_ids)[:-1]:
        return None
    hidden = captured[0][: len(token_ids) - 1, 0]
    shard = torch.nn.functional.linear(hidden, last.output_weight()).float().contiguous()
    shards = [torch.empty_like(shard) for _ in range(policy.layout.tensor_size)]
    dist.all_gather(shards, shard, group=parallel_state.get_tensor_model_parallel_group())
    logits, softcap = torch.cat(shards, dim=-1)[:, : last.real_vocab_size], last.final_softcap
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
