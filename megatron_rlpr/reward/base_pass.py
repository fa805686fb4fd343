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

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from megatron_rlpr.reward.base_table import BaseProbabilityTable
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.types import Prompt, ScoreRequest, TokenScores, TokensDone, UserError

CHUNK = 4096
"""Prompts of a piece: minutes of work at most, and enough to fill the micro-batches of many ranks."""

Score = Callable[[Sequence[ScoreRequest], TokensDone | None], list[TokenScores]]


def complete(
    table: BaseProbabilityTable,
    prompt_set: str,
    prompts: Sequence[Prompt],
    score: Score,
    rewards: RewardManager,
    fault: str,
    shares: Shares,
    progress: TokensDone | None = None,
    chunk: int = CHUNK,
) -> int:
    """Compute and store what the table lacks; returns how many prompts that were. Collective over all ranks.

    score: the policy's. Raises UserError on every rank when a prompt has no answer to score, or a score that is no
    number: fault says what that means.
    """
    pieces = [prompts[start : start + chunk] for start in range(0, len(prompts), chunk)]
    lacking = [piece for piece in pieces if table.missing(piece)]
    added = 0
    for piece, advance in zip(lacking, _parts(progress, len(lacking)), strict=True):
        missing = table.missing(piece)  # a prompt may stand in an earlier piece, too
        if not missing:
            continue
        scores = score(_requests(rewards, missing, shares), advance)
        mine = shares.part_of(len(missing))
        probabilities = partial(_probabilities, prompt_set, missing[mine], scores[mine], rewards, fault)
        of_ranks = shares.gather(probabilities, "the base probabilities")
        table.record(missing, np.concatenate([array for (array,) in of_ranks]).tolist())
        first_rank_decides(partial(table.save, missing))
        added += len(missing)
    return added


def _requests(rewards: RewardManager, prompts: Sequence[Prompt], shares: Shares) -> list[ScoreRequest]:
    """What to score for all of the prompts; this rank tokenises its share."""
    mine = prompts[shares.part_of(len(prompts))]
    made = shares.gather(lambda: [_as_array(rewards.base_requests(mine))], "tokenising the reference answers")
    return [request for (array,) in made for request in _from_array(array)]


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


def _as_array(requests: Sequence[ScoreRequest]) -> Array:
    """int32: of every request its number of tokens, start, stop, then its tokens."""
    parts = [(len(r.token_ids), r.start, r.stop, *r.token_ids) for r in requests]
    return np.fromiter((number for part in parts for number in part), dtype=np.int32)


def _from_array(array: Array) -> Iterator[ScoreRequest]:
    position = 0
    while position < len(array):
        length, start, stop = array[position : position + 3].tolist()
        position += 3 + length
        yield ScoreRequest(tuple(array[position - length : position].tolist()), start, stop)


def _parts(progress: TokensDone | None, count: int) -> Iterator[TokensDone | None]:
    """`progress` for each of several calls in a row; those that follow are taken to have as many pieces."""
    done = 0

    def advance(before: int, left: int, tokens: int, pieces: int) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(tokens, before + pieces * left)

    for left in range(count, 0, -1):
        yield partial(advance, done, left)
