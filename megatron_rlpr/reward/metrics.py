"""How the rewards of a batch are spread and how long its reasoning and answers are (spec section 6.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.grading.format import CLOSE_ANSWER, CLOSE_THINK, OPEN_ANSWER, OPEN_THINK, format_score
from megatron_rlpr.reward.reasoning import reasoning_metrics
from megatron_rlpr.system.shares import Array, Shares
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


def length_metrics(
    tokenizer: Any,
    groups: Sequence[ScoredGroup],
    format_mode: str,
    shares: Shares = Shares(),  # noqa: B008 - of this process alone
) -> dict[str, float]:
    """think_length/ and answer_length/ {mean, max, min} in tokens over all responses, and `reasoning_metrics`; empty
    without any. Collective: every rank measures the texts that it owns.

    Reasoning is what the think tags hold, or with R1_nothink what comes before the answer tag; white space at the ends
    of both parts is not counted, and both are 0 for a response whose format is wrong.
    """

    def work() -> list[Array]:
        mine = [g for g in groups if g.group.owner == shares.rank]
        return [_lengths(tokenizer, [response.text for g in mine for response in g.group.responses], format_mode)]

    of_rank = [iter(rows.reshape(-1, 3).tolist()) for (rows,) in shares.gather(work, "measuring the responses")]
    owners = [g.group.owner for g in groups for _ in g.group.responses]
    measured = [next(of_rank[owner]) for owner in owners]
    reasoning, answers, right = (list(column) for column in zip(*measured, strict=True)) if measured else ([], [], [])
    metrics = reasoning_metrics(groups, reasoning, right)
    for name, values in (("think_length", reasoning), ("answer_length", answers)) if measured else ():
        metrics[f"{name}/mean"] = sum(values) / len(values)
        metrics[f"{name}/max"] = float(max(values))
        metrics[f"{name}/min"] = float(min(values))
    return metrics


def _lengths(tokenizer: Any, texts: Sequence[str], format_mode: str) -> npt.NDArray[np.int32]:
    """Tokens of reasoning and of answer, and whether the tags are right, of every text: int32 [3 * len(texts)]."""
    right = [format_score(text, format_mode) == 1 for text in texts]
    parts = [
        part
        for text, has_tags in zip(texts, right, strict=True)
        for part in (_parts(text, format_mode) if has_tags else ("", ""))
    ]
    counts = np.array([len(encoding) for encoding in encode(tokenizer, parts)], dtype=np.int32).reshape(-1, 2)
    return np.column_stack([counts, np.array(right, dtype=np.int32)]).reshape(-1)


def _parts(text: str, format_mode: str) -> tuple[str, str]:
    """Reasoning and answer of a text with the right tags."""
    before_answer, _, rest = text.partition(OPEN_ANSWER)
    answer = rest.partition(CLOSE_ANSWER)[0]
    thinking = before_answer
    if format_mode == "R1":
        thinking = before_answer.partition(OPEN_THINK)[2].partition(CLOSE_THINK)[0]
    return thinking.strip(), answer.strip()
