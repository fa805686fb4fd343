"""Prompts, groups and scores with recognisable numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores


def prompt(index: int, length: int = 3, source: str = "unit") -> Prompt:
    ids = tuple(range(10 * index, 10 * index + length))
    return Prompt(
        index, ids, ({"role": "user", "content": f"question {index}"},), f"answer {index}", source, {"ability": "maths"}
    )


def response(length: int, *, seed: int = 0, gap: float = 0.0, finish_reason: str = "stop") -> Response:
    """Engine log-probs are `gap` above those that `scores` gives the same tokens."""
    log_probs = tuple(float(value) for value in scores(length).log_probs + gap)
    return Response(
        tuple(range(500, 500 + length)), f"text {seed}", log_probs, finish_reason, seed, weight_versions=(1, 2)
    )


def scores(length: int) -> TokenScores:
    values = np.arange(1, length + 1, dtype=np.float32)
    return TokenScores(-values / 7, values / 3)


def scored(
    index: int,
    rewards: Sequence[float],
    lengths: Sequence[int],
    *,
    gap: float = 0.0,
    finish_reason: str = "stop",
    source: str = "unit",
) -> ScoredGroup:
    """A group of len(rewards) responses; all reward parts follow from the final reward."""
    responses = tuple(
        response(length, seed=i, gap=gap, finish_reason=finish_reason) for i, length in enumerate(lengths)
    )
    parts = tuple(
        ResponseReward(
            reward=reward,
            reference_probability=reward / 2,
            base_probability=0.25,
            format=1.0,
            repetition=-1.0 if reward < 0 else 0.0,
            splice_valid=reward > 0,
            extracted_answer="x",
            accuracy=float(reward > 1),
            probability_reward=reward / 4,
            graded_reward=reward / 8,
        )
        for reward in rewards
    )
    return ScoredGroup(
        RolloutGroup(prompt(index, source=source), responses), tuple(scores(length) for length in lengths), parts
    )
