"""The pass over all prompts whose base probabilities are missing, before the policy changes.

    prompts -> pieces of CHUNK neighbours; of each what the table lacks
            -> every rank tokenises its share of it, and gets the others' requests as arrays
            -> the policy scores them, all ranks together
            -> every rank makes its share of the probabilities, and gets the others'
            -> the first rank stores the table, and the piece for other runs

Invariants (tests/distributed/test_base_pass.py):
1. A pass that was killed and goes on comes to the digits of an undisturbed one: what is computed together follows from
   the prompts and from what the run began with (`BaseProbabilityTable.open`), a piece is stored wholly or not at all.
2. What is scored is the same for any number of ranks.
3. Where nothing is missing, nothing is tokenised and scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from megatron_rlpr.reward.base_table import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.of_owners import requests_of_prompts
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.types import Prompt, RolloutGroup, ScoreRequest, TokenScores, TokensDone, UserError

CHUNK = 4096
"""Prompts of a piece: minutes of work at most, and enough to fill the micro-batches of many ranks."""

Part = Callable[[int], TokensDone]
Score = Callable[[Sequence[ScoreRequest], TokensDone | None], list[TokenScores]]


def complete(
    table: BaseProbabilityTable,
    prompt_set: str,
    prompts: Sequence[Prompt],
    score: Score,
    rewards: RewardManager,
    fault: str,
    shares: Shares,
    part: Part | None = None,
    chunk: int = CHUNK,
) -> int:
    """Compute and store what the table lacks; returns how many prompts that were. Collective over all ranks.

    score: the policy's. Raises UserError on every rank when a prompt has no answer to score, or a score that is no
    number: fault says what that means. part: given how many pieces are left, what the policy tells its progress to.
    """
    pieces = [prompts[start : start + chunk] for start in range(0, len(prompts), chunk)]
    lacking = [piece for piece in pieces if table.missing(piece)]
    added = 0
    for number, piece in enumerate(lacking):
        missing = table.missing(piece)  # a prompt may stand in an earlier piece, too
        if not missing:
            continue
        advance = None if part is None else part(len(lacking) - number)
        scores = score(_requests(rewards, missing, shares), advance)
        mine = shares.part_of(len(missing))
        probabilities = partial(_probabilities, prompt_set, missing[mine], scores[mine], rewards, fault)
        of_ranks = shares.gather(probabilities, "the base probabilities")
        table.record(missing, np.concatenate([array for (array,) in of_ranks]).tolist())
        first_rank_decides(partial(table.save, missing))
        added += len(missing)
    return added


def _requests(rewards: RewardManager, prompts: Sequence[Prompt], shares: Shares) -> list[ScoreRequest]:
    """What to score for all of the prompts, which the ranks tokenise in turn."""
    in_turn = [RolloutGroup(prompt, (), number % shares.size) for number, prompt in enumerate(prompts)]
    made = requests_of_prompts(shares, in_turn, rewards.base_requests)
    return [request for request in made if request is not None]


def _probabilities(
    prompt_set: str, prompts: Sequence[Prompt], scores: Sequence[TokenScores], rewards: RewardManager, fault: str
) -> list[Array]:
    """float64: the base probabilities of these prompts."""
    made = []
    for prompt, answer in zip(prompts, scores, strict=True):
        if not np.isfinite(answer.log_probs).all():
            raise UserError(f"prompt {prompt.index} of {prompt_set}: the reference answer's {fault}")
        made.append(rewards.base_probability(answer))
    return [np.array(made, dtype=np.float64)]
