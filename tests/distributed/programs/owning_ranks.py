"""Ranks that own prompts score, filter and store a step together: owning_ranks.py TOKENIZER PLACE.

Each writes PLACE/found_RANK.json with what it found. The policy's log-probs follow from the requests alone, so that
everything must be the same to the last bit, however many ranks there are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import with_advantages
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.carried_groups import to_state
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer, text_of
from megatron_rlpr.evaluation.held_out import HeldOutEvaluation, ValidationSet
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.metrics import length_metrics
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.owned import share_groups, spread_groups, whole, with_texts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.writing import RolloutWriter
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.decisions import require_same
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoreRequest, TokenScores, UserError, int32_row

PROMPTS, N = 7, 4


class KnownPolicy:
    """Log-probs and entropies that follow from a request's tokens."""

    def score(self, requests: Sequence[ScoreRequest], progress: Any = None) -> list[TokenScores]:
        rows = [(int32_row(r.token_ids), r.start, r.stop) for r in requests]
        sums = [np.cumsum(ids)[start:stop].astype(np.float32) for ids, start, stop in rows]
        return [TokenScores(-1 - np.sin(total) ** 2, np.cos(total) ** 2) for total in sums]


def responses(tokenizer: Any) -> list[Response]:
    """To prompt 0 sample 0, 1, ..., then those to the next; some are cut, some have no tags, one is empty."""
    made = []
    for number in range(PROMPTS * N):
        text = f"<think> {'so ' * (number % 5)}é漢 {number} </think> <answer> {number} </answer>"
        text = ["no tags", text + tokenizer.eos_token, text[: 10 * number], text][number % 4]
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if number != 9 else ()
        log_probs = tuple(np.sin(np.arange(len(ids)) + number).astype(np.float32).tolist())
        reason, versions = ("stop", "length")[number % 2], (number,) if number % 3 else (1, 2)
        made.append(Response(ids, text_of(tokenizer, ids), log_probs, reason, 2**31 - 1 - number, versions))
    return made


def prompts(tokenizer: Any) -> list[Prompt]:
    questions = [({"role": "user", "content": f"{n}+{n}=?"},) for n in range(PROMPTS)]
    ids = [
        tuple(tokenizer.apply_chat_template(list(q), add_generation_prompt=True, return_dict=False)) for q in questions
    ]
    return [Prompt(n, ids[n], questions[n], str(N * n + 1), "quickstart/unit", {"n": n}) for n in range(PROMPTS)]


def step(tokenizer: Any, shares: Shares, folder: Path) -> dict[str, Any]:
    """Everything of one step but the policy."""
    config, decode = Config(), partial(text_of, tokenizer)
    config.reward.repetition_penalty = True
    config.reward.reward_manager, config.reward.format_mode = "mix", "R1"
    asked = RolloutRequest(prompts(tokenizer), N, 3, 1, SamplingSettings())
    everything = responses(tokenizer)
    owners = [(5 * number + 1) % shares.size for number in range(PROMPTS)]
    mine = {p * N + s: everything[p * N + s] for p in range(PROMPTS) if owners[p] == shares.rank for s in range(N)}
    groups = share_groups(shares, asked, owners, mine)
    graded: list[int] = []

    def grade(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
        graded.extend(prompt.index for prompt, _ in pairs)
        return [float(str(prompt.index) in response.text) for prompt, response in pairs]

    rewards = RewardManager(config.reward, tokenizer, 400, 200, grade)
    scorer = GroupScorer(KnownPolicy(), rewards, "current", {}, Clock(), shares)
    scored = scorer.score(groups, "train")
    fill, std_filter = BatchFill(3, 1), StdFilter(config.filter)
    std_filter.begin_step(1)
    keep = std_filter.judge(scored)
    fill.offer(scored, [kept and number != 2 for number, kept in enumerate(keep)])
    require_same(fill.content, "rewards")
    batch, surplus = fill.take()
    trained = with_advantages(batch, config)
    writer = RolloutWriter(folder, decode)
    writer.begin(3, fill.history, trained.first_advantages(fill.history), fill.kept)
    writer.settle()
    validate(config, tokenizer, scorer, groups, shares, folder.parent / "validation")
    return {
        "rewards": [[reward.hex() for reward in group.final_rewards.tolist()] for group in scored],
        "kept": fill.kept,
        "without": scorer.without_reasoning(groups),
        "lengths": length_metrics(tokenizer, scored, "R1", shares),
        "carried": to_state([whole(group, decode) for group in surplus]),
        "texts_here": [group.prompt.index for group in groups if owns_texts(group.responses[0])],
        "graded_here": sorted(set(graded)),
        "spread": spread(shares, asked, everything, decode),
    }


class GivenRollouts:
    """Answers with groups that are there already."""

    def __init__(self, groups: list[RolloutGroup]) -> None:
        self._groups = groups

    def generate(self, asked: RolloutRequest, on_progress: Any = None) -> list[RolloutGroup]:
        return [self._groups[prompt.index] for prompt in asked.prompts]


def validate(
    config: Config, tokenizer: Any, scorer: GroupScorer, groups: list[RolloutGroup], shares: Shares, folder: Path
) -> None:
    """Grade the groups as the answers to a validation in three pieces, and store them in folder."""
    config.evaluation.strategies, config.evaluation.prompts_per_piece = ["sampling"], 3
    tasks = GradeTasks(SpecialTokens.of(tokenizer), "R1")
    one = ValidationSet("unit", PromptSet(tuple(group.prompt for group in groups), 0), N)
    rollouts: Any = GivenRollouts(groups)
    with closing(GraderPool(workers=1)) as graders:
        rest: Any = (tasks, None, folder, lambda: "weights", {}, {}, shares)
        HeldOutEvaluation(config, rollouts, scorer, graders, Console(enabled=False), *rest).run([one], 0)


def owns_texts(response: Response) -> bool:
    try:
        return isinstance(response.text, str)
    except AttributeError:
        return False


def spread(
    shares: Shares, asked: RolloutRequest, all_of_them: list[Response], decode: Callable[..., str]
) -> list[bool]:
    """Whether groups that the first rank has arrive, texts with their owners."""
    groups = spread_groups(shares, asked, all_of_them if shares.rank == 0 else None, decode)
    wanted = asked.groups(all_of_them)
    arrived = [with_texts(group, decode) for group in groups]
    texts = all(owns_texts(g.responses[0]) == (g.owner == shares.rank) for g in groups)
    return [arrived == wanted, texts, {g.owner for g in groups} == set(range(shares.size))]


def refused(shares: Shares, error: Exception) -> str:
    """What this rank raises when the last one fails."""

    def work() -> list[np.ndarray]:
        if shares.rank == shares.size - 1:
            raise error
        return [np.zeros(3)]

    try:
        shares.gather(work, "grading")
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "nothing"


def main(tokenizer: str, place: str) -> None:
    """Collective over all ranks."""
    dist.init_process_group("cpu:gloo")
    shares = Shares.of_world()
    found = step(load_tokenizer(tokenizer), shares, Path(place) / "rollouts")
    found["user"], found["other"] = refused(shares, UserError("a bad row")), refused(shares, ValueError("a bug"))
    found["goes_on"] = [int(of[0][0]) for of in shares.gather(lambda: [np.array([shares.rank], np.int32)], "going on")]
    (Path(place) / f"found_{shares.rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
