"""Surplus groups that wait for the next step with their old responses (filter.cache_regenerate=false).

They are part of a run's state, so they can be written as plain JSON values and read back equal, but for the scores of
the references, which are stored with the step that made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores


def to_state(groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """JSON-serialisable; float32 scores survive exactly, because a double holds every one of them."""
    return [
        {
            "prompt": asdict(scored.group.prompt),
            "responses": [asdict(response) for response in scored.group.responses],
            "scores": [{"log_probs": s.log_probs.tolist(), "entropies": s.entropies.tolist()} for s in scored.scores],
            "rewards": [asdict(reward) for reward in scored.rewards],
        }
        for scored in groups
    ]


def from_state(state: Sequence[dict[str, Any]]) -> list[ScoredGroup]:
    """Inverse of `to_state`."""
    return [
        ScoredGroup(
            RolloutGroup(_prompt(entry["prompt"]), tuple(_response(r) for r in entry["responses"])),
            tuple(
                TokenScores(np.array(s["log_probs"], np.float32), np.array(s["entropies"], np.float32))
                for s in entry["scores"]
            ),
            tuple(ResponseReward(**reward) for reward in entry["rewards"]),
        )
        for entry in state
    ]


def _prompt(fields: dict[str, Any]) -> Prompt:
    return Prompt(**{**fields, "token_ids": tuple(fields["token_ids"]), "messages": tuple(fields["messages"])})


def _response(fields: dict[str, Any]) -> Response:
    lists = ("token_ids", "engine_log_probs", "weight_versions")
    return Response(**{**fields, **{name: tuple(fields[name]) for name in lists}})
