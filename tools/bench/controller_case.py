"""`bench controller`: what one rank does and receives in a step besides model and engine, in worlds of any size.

One process is rank 0 of a simulated world: what the other ranks bring to an exchange is made here too, and not counted.
The policy answers with made-up numbers, but plans its micro-batches as the real one does. `before` is the way of old:
every rank did all of the work, and responses went from rank to rank pickled.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from megatron_rlpr.actor.policy_gradient import RowValues
from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import loss_weights, mini_batches, with_advantages
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.tokenizer import encode, load_tokenizer, text_of
from megatron_rlpr.packing import plan
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.metrics import length_metrics
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.owned import share_groups
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.shares import Array, Shares, pack, unpack
from megatron_rlpr.tracking.step_metrics import reward_metrics
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoredGroup, ScoreRequest, TokenScores
from tools.bench.packing_case import MAX_RESPONSE, QWEN_7B, RESPONSES, long_tailed_batch

WORLDS = (8, 64, 512)
RANKS_OF_NODE = 8
_REFERENCE_ANSWERS = ("42", "3/4", "The mitochondria", "x = -2", "1,024 dollars")


class SimulatedShares(Shares):
    """Rank 0 of a world: an exchange makes what every rank brings; of their time the mean counts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.seconds_not_ours = 0.0
        self.seconds_of_waiting = 0.0
        """What the slowest ranks take longer than the mean."""

    def gather(
        self, work: Callable[[], Sequence[Array]], what: str, first_only: bool = False
    ) -> list[tuple[Array, ...]]:
        """What all ranks bring, rank 0 last."""
        begun, seconds, brought = time.process_time(), [], []
        for rank in reversed(range(self.size)):
            self.rank = rank
            start = time.process_time()
            brought.append(pack(work()))
            seconds.append(time.process_time() - start)
        mean = sum(seconds) / self.size
        self.seconds_not_ours += time.process_time() - begun - mean
        self.seconds_of_waiting += max(seconds) - mean
        self.bytes_received += sum(map(len, brought))
        return [unpack(packed) for packed in reversed(brought)]


class PlanningPolicy:
    """Plans and builds rank 0's micro-batches as the real policy does; its scores are made up."""

    def __init__(self, ranks: int, max_tokens: int) -> None:
        self._ranks, self._max_tokens = ranks, max_tokens
        self._numbers = -np.random.default_rng(0).exponential(1.0, 2 * MAX_RESPONSE).astype(np.float32)

    def plan(self, requests: Sequence[ScoreRequest]) -> None:
        """What `score` and `update` begin with."""
        plan(requests, self._max_tokens, self._ranks, cost_model=QWEN_7B).for_rank(0)

    def score(self, requests: Sequence[ScoreRequest], progress: Any = None) -> list[TokenScores]:
        """Numbers of the right shapes."""
        self.plan(requests)
        rows = [self._numbers[number % 997 :][: r.stop - r.start] for number, r in enumerate(requests)]
        return [TokenScores(row, -row) for row in rows]


class _PlainIds:
    """A tokenizer that takes ids from arrays: what other ranks decode here lies in ours."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], **options))

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        return list(self._tokenizer.batch_decode([[int(i) for i in row] for row in rows], **options))


def run(folder: Path, prompts: int, max_tokens: int, worlds: Sequence[int] = WORLDS) -> dict[str, Any]:
    """CPU seconds and bytes a rank, before and now, and what a node's thread takes to write its file."""
    torch.set_num_threads(1)
    tokenizer = _PlainIds(load_tokenizer(str(folder)))
    asked, responses = _workload(tokenizer, prompts)
    report: dict[str, Any] = {
        "prompts": prompts,
        "responses": len(responses),
        "response_tokens": sum(len(r.token_ids) for r in responses),
        "longest_response": max(len(r.token_ids) for r in responses),
    }
    for ranks in worlds:
        start = time.process_time()
        pickled = [pickle.dumps(responses[number::ranks]) for number in range(ranks)]
        packing = (time.process_time() - start) * (ranks - 1) / ranks  # a rank pickles its own
        received = [response for part in map(pickle.loads, pickled) for response in part]
        groups = asked.groups(
            r for _, r in sorted(zip(_dealt(len(responses), ranks), received, strict=True), key=_first)
        )
        _step(tokenizer, Shares(), groups, PlanningPolicy(ranks, max_tokens))
        report[f"before_seconds_{ranks}"] = time.process_time() - start - packing
        report[f"before_mb_{ranks}"] = sum(map(len, pickled)) / 1e6
        del pickled, received, groups
        now, shares = _now(tokenizer, asked, responses, ranks, max_tokens)
        report |= {f"now_{name}_{ranks}": value for name, value in now.items()}
        report[f"now_mb_{ranks}"] = shares.bytes_received / 1e6
    return report


def _now(
    tokenizer: Any, asked: RolloutRequest, responses: list[Response], ranks: int, max_tokens: int
) -> tuple[dict[str, float], SimulatedShares]:
    """Seconds of a rank in a world of so many, and what it received."""
    shares = SimulatedShares(ranks)
    start = time.process_time()
    owners = [number % ranks for number in range(len(asked.prompts))]
    groups = share_groups(shares, asked, owners, dict(enumerate(responses)))
    seconds = time.process_time() - start
    for group, number in zip(groups, range(0, len(responses), asked.n), strict=True):
        for sample, response in enumerate(group.responses):
            vars(response)["text"] = responses[number + sample].text  # for those who own it, who are simulated
    start = time.process_time()
    scored = _step(tokenizer, shares, groups, PlanningPolicy(ranks, max_tokens))
    seconds += time.process_time() - start - shares.seconds_not_ours
    mine = [group for group in scored if group.group.owner < RANKS_OF_NODE]
    with TemporaryDirectory() as folder:
        start = time.process_time()
        kept, nothing = [True] * len(mine), [None] * len(mine)
        write_rollouts(folder, 1, mine, advantages=nothing, kept=kept, decode=partial(text_of, tokenizer))
        writing = time.process_time() - start
    found = {"seconds": seconds, "seconds_with_waiting": seconds + shares.seconds_of_waiting}
    return found | {"seconds_of_the_writing_thread": writing}, shares


def _step(tokenizer: Any, shares: Shares, groups: list[RolloutGroup], policy: PlanningPolicy) -> list[ScoredGroup]:
    """A step of the trainer without model and engine."""
    config = Config()
    config.reward.repetition_penalty = True
    config.reward.reward_manager, config.reward.format_mode = "mix", "R1"
    rewards = RewardManager(config.reward, tokenizer, 4096, 4096, _grade)
    scored = GroupScorer(policy, rewards, "none", {}, Clock(), shares).score(groups, "train")
    std_filter, fill = StdFilter(config.filter), BatchFill(len(groups), 1)
    std_filter.begin_step(1)
    fill.offer(scored, std_filter.judge(scored))
    batch = with_advantages(fill.take()[0], config)
    (sequences,) = mini_batches(batch, 0)
    RowValues.of(sequences, loss_weights(sequences, config))
    policy.plan([ScoreRequest(s.token_ids, s.start, s.stop) for s in sequences])
    length_metrics(tokenizer, batch.groups, "R1", shares)
    reward_metrics(batch.groups)
    return scored


def _grade(pairs: Sequence[tuple[Prompt, Response]]) -> list[float]:
    """By the last words; graders that take longer run in processes of their own."""
    return [float(prompt.reference_answer in response.text[-80:]) for prompt, response in pairs]


def _workload(tokenizer: Any, prompts: int) -> tuple[RolloutRequest, list[Response]]:
    """Prompts and tagged responses, about as long as those of `bench packing`."""
    lengths = [(r.start, r.stop - r.start) for r in long_tailed_batch(prompts)]
    rng = np.random.default_rng(0)
    words = [
        text
        for text in tokenizer.batch_decode([[i] for i in range(min(9000, len(tokenizer.get_vocab())))])
        if text.strip().isalpha()
    ]
    asked: list[Prompt] = []
    texts = []
    for number, (prompt, response) in enumerate(lengths):
        if number % RESPONSES == 0:
            question = " ".join(rng.choice(words, max(prompt // 2, 8)))
            ids = tuple(encode(tokenizer, [question])[0].ids)
            answer = _REFERENCE_ANSWERS[len(asked) % len(_REFERENCE_ANSWERS)]
            asked.append(Prompt(len(asked), ids, ({"role": "user", "content": question},), answer, "bench"))
        texts.append("".join(rng.choice(words, response)))
    made = []
    for number, (encoding, (_, size)) in enumerate(zip(encode(tokenizer, texts), lengths, strict=True)):
        thought = tokenizer.decode(encoding.ids[: max(size - 24, 1)])
        answer = _REFERENCE_ANSWERS[number % len(_REFERENCE_ANSWERS)]
        text = f"<think>{thought}</think> <answer> {answer} </answer>{tokenizer.eos_token}"
        ids = tuple(encode(tokenizer, [text])[0].ids)
        made.append(Response(ids, text, tuple((-rng.random(len(ids), np.float32)).tolist()), "stop", number))
    return RolloutRequest(asked, RESPONSES, 1, 1, SamplingSettings()), made


def _dealt(count: int, ranks: int) -> list[int]:
    """The numbers of what ranks made in turn, rank by rank."""
    return [number for rank in range(ranks) for number in range(rank, count, ranks)]


def _first(pair: tuple[int, Response]) -> int:
    return pair[0]
