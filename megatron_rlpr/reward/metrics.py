"""How the rewards of a batch are spread and how long its reasoning and answers are (spec section 6.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.grading.format import CLOSE_ANSWER, CLOSE_THINK, OPEN_ANSWER, OPEN_THINK, format_score
from megatron_rlpr.reward.reasoning import reasoning_metrics
from megatron_rlpr.types import ScoredGroup

BINS = 10


def final_reward_distribution(rewards: Iterable[float]) -> dict[str, float]:
    """Share of rewards below 0, exactly 0, in each tenth of (0, 1), exactly 1 and above 1; empty without rewards.

    A tenth holds its lower edge but not its upper one. Comparisons are in float32, the precision rewards are recorded
    in.
    """
    values = np.array(list(rewards), dtype=np.float32)
    if not len(values):
        return {}
    shares = {"<0": values < 0, "=0": values == 0}
    inside = (values > 0) & (values < 1)
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        shares[f"_in_{low:.1f}_to_{high:.1f}"] = inside & (values >= np.float32(low)) & (values < np.float32(high))
    shares["=1"] = values == 1
    shares[">1"] = values > 1
    return {f"final_reward_dist/final_reward{name}": float(hits.mean()) for name, hits in shares.items()}


def length_metrics(tokenizer: Any, groups: Sequence[ScoredGroup], format_mode: str) -> dict[str, float]:
    """think_length/ and answer_length/ {mean, max, min} in tokens over all responses, and `reasoning_metrics`; empty
    without any.

    Reasoning is what the think tags hold, or with R1_nothink what comes before the answer tag; white space at the ends
    of both parts is not counted, and both are 0 for a response whose format is wrong.
    """
    responses = [response for group in groups for response in group.group.responses]
    right = [format_score(response.text, format_mode) == 1 for response in responses]
    parts = [
        text
        for response, has_tags in zip(responses, right, strict=True)
        for text in (_parts(response.text, format_mode) if has_tags else ("", ""))
    ]
    counts = [len(encoding) for encoding in encode(tokenizer, parts)]
    metrics = reasoning_metrics(groups, counts[::2], right)
    for name, values in (("think_length", counts[::2]), ("answer_length", counts[1::2])) if counts else ():
        metrics[f"{name}/mean"] = sum(values) / len(values)
        metrics[f"{name}/max"] = float(max(values))
        metrics[f"{name}/min"] = float(min(values))
    return metrics


def _parts(text: str, format_mode: str) -> tuple[str, str]:
    """Reasoning and answer of a text with the right tags."""
    before_answer, _, rest = text.partition(OPEN_ANSWER)
    answer = rest.partition(CLOSE_ANSWER)[0]
    thinking = before_answer
    if format_mode == "R1":
        thinking = before_answer.partition(OPEN_THINK)[2].partition(CLOSE_THINK)[0]
    return thinking.strip(), answer.strip()
