"""The eight responses that the reward-manager goldens share, as this project's records."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden_files import load
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.reward.manager import Grade, RewardManager
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, TokenScores

INPUT: dict[str, Any] = load("prob_reward_manager.json")["input"]
SYSTEM = "Reason within <think> </think>, answer within <answer> </answer>."


def recorded_responses() -> list[Response]:
    """Every recorded text, tokenised, with its end of sequence."""
    tokenizer = golden_tokenizer(INPUT["tokenizer"])
    responses = []
    for text, length in zip(INPUT["responses_text"], INPUT["valid_response_length"], strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * bool(
            INPUT["eos_appended"]
        )
        assert len(ids) == length
        responses.append(Response(tuple(ids), tokenizer.decode(ids), (0.0,) * length, "stop", 0))
    return responses


def recorded_scores() -> list[TokenScores | None]:
    """The recorded log-probs under every response's mask; None where the mask is empty."""
    scores: list[TokenScores | None] = []
    for row, mask in zip(INPUT["old_log_probs_pr"], INPUT["ground_truth_mask_pr"], strict=True):
        log_probs = np.array(row, dtype=np.float32)[np.array(mask, dtype=bool)]
        scores.append(TokenScores(log_probs, np.zeros_like(log_probs)) if len(log_probs) else None)
    return scores


def rewards(config: RewardConfig, data_source: str = "golden", grade: Grade | None = None) -> list[ResponseReward]:
    """The reward of every recorded response, each with its own recorded base probability."""
    manager = RewardManager(config, golden_tokenizer(INPUT["tokenizer"]), 64, 64, grade)
    prompt = Prompt(0, (0,), ({"role": "system", "content": SYSTEM},), INPUT["ground_truth"], data_source)
    return [
        manager.rewards([RolloutGroup(prompt, (response,))], [[scores]], [base])[0][0]
        for response, scores, base in zip(recorded_responses(), recorded_scores(), INPUT["scoreA"], strict=True)
    ]


def row_sums(rows: list[list[list[float]]]) -> list[float]:
    """A tensor's rows, stored as lists of [column, value], summed up: one number per response."""
    return [sum(float(value) for _, value in row) for row in rows]


def at_last_token(values: list[float]) -> list[list[list[float]]]:
    """One number per response as the reference stores it: at the column of the last valid token, nothing for 0."""
    lengths = INPUT["valid_response_length"]
    return [[[length - 1, value]] if value else [] for length, value in zip(lengths, values, strict=True)]
