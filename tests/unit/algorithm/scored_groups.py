"""Small scored groups for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup


def scored_group(
    rewards: Sequence[float],
    *,
    prompt: int = 0,
    source: str = "",
    reference: float = 0.0,
    base: float = 0.0,
    accuracy: float = 0.0,
    truncated: bool = False,
) -> ScoredGroup:
    """A group with the given final rewards; the other parts are the same for all its responses."""
    reason = "length" if truncated else "stop"
    response = Response(token_ids=(0,), text="", engine_log_probs=(0.0,), finish_reason=reason, seed=0)
    parts = tuple(ResponseReward(reward, reference, base, 0.0, 0.0, True, "", accuracy) for reward in rewards)
    record = Prompt(index=prompt, token_ids=(0,), messages=(), reference_answer="", data_source=source)
    return ScoredGroup(RolloutGroup(record, (response,) * len(rewards)), scores=(), rewards=parts)
