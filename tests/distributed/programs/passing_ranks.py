"""The pass over base probabilities by real policies: passing_ranks.py MODEL PLACE CHUNK KILL_AFTER.

Every rank appends what it did to did_RANK.jsonl. With KILL_AFTER > 0 the first rank is killed when so many pieces are
stored, wherever the others are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch.distributed as dist

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig, RewardConfig
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.reward.base_pass import complete
from megatron_rlpr.reward.base_table import BaseProbabilityTable, SharedBaseProbabilities
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.console import PhaseProgress
from megatron_rlpr.types import Prompt, ScoreRequest, TokenScores, TokensDone
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights

PROMPTS, DIFFERENT = 44, 34
"""More than two pieces of 16; the last ten prompts are the first ones once more."""


def prompts_of(model: str) -> tuple[Prompt, ...]:
    """Sums of different lengths."""
    tokenizer = load_tokenizer(model)
    numbers = [row % DIFFERENT for row in range(PROMPTS)]
    texts = [" and" * (number % 5) + f" {number} + {number} =" for number in numbers]
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return tuple(Prompt(row, ids[row], (), f"{2 * number} it is", "unit") for row, number in enumerate(numbers))


class CountingRewards(RewardManager):
    """Knows which prompts it has tokenised."""

    tokenised: ClassVar[list[int]] = []

    def base_requests(self, prompts: Sequence[Prompt]) -> list[ScoreRequest]:
        self.tokenised.extend(prompt.index for prompt in prompts)
        return super().base_requests(prompts)


def main(model: str, place: Path, chunk: int, kill_after: int) -> None:
    """One pass, which goes on where a killed one ended."""
    actor = ActorConfig(dtype="float32", max_tokens_per_micro_batch=160, head_chunk_rows=7)
    layout = parallel.initialize(actor, 1, 120)
    shape = model_shape(HfFolder(model).config())
    policy = MegatronPolicy(shape, actor, layout, 1.0, trainable=False)
    load_hf_weights(policy.chunks, shape, model)
    rewards = CountingRewards(RewardConfig(), load_tokenizer(model), 100, 60)
    scored: list[list[list[int]]] = []

    def score(requests: Sequence[ScoreRequest], progress: TokensDone | None) -> list[TokenScores]:
        if kill_after and len(scored) == kill_after and layout.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        scored.append([[*map(int, request.token_ids), request.start, request.stop] for request in requests])
        return policy.score(requests, progress)

    prompts = prompts_of(model)
    progress = PhaseProgress("base probabilities", None, lambda _: None, time.monotonic)
    shared = SharedBaseProbabilities(place.parent / "shared", {"model": "tiny"})
    table = BaseProbabilityTable({"model": "tiny"}, place / "base.json", shared)
    shares = Shares.of_world()
    table.take_arrays(*shares.from_first(table.open(prompts).arrays() if layout.rank == 0 else None))
    added = complete(table, "train", prompts, score, rewards, "fault", shares, progress.part, chunk)
    did = {
        "added": added,
        "tokenised": rewards.tokenised,
        "scored": scored,
        "probabilities": [table.probability(prompt) for prompt in prompts],
        "progress": [progress.done, progress.total],
    }
    with (place / f"did_{layout.rank}.jsonl").open("a") as file:
        file.write(json.dumps(did) + "\n")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
