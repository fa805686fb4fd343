"""`bench reward`: everything a reward needs besides the forward, on one core."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoreRequest, TokenScores
from tools.bench.workload import BenchGroup

_REFERENCE_ANSWERS = ("42", "3/4", "The mitochondria", "x = -2", "1,024 dollars")


def run(folder: Path, groups: list[BenchGroup], config: RewardConfig, max_response_length: int) -> dict[str, Any]:
    """Seconds to splice references into all responses and turn scores into rewards (repetition penalty on)."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(str(folder))
    manager = RewardManager(config, tokenizer, max_prompt_length=4096, max_response_length=max_response_length)
    rollouts = [_rollout(tokenizer, number, group) for number, group in enumerate(groups)]
    manager.reference_requests(rollouts[:1])
    rng = np.random.default_rng(0)
    start, busy = time.perf_counter(), time.process_time()
    requests = manager.reference_requests(rollouts)
    spliced, spliced_busy = time.perf_counter(), time.process_time()
    scores = [[None if r is None else _scores(rng, r) for r in per_group] for per_group in requests]
    scored, made_up = time.perf_counter(), time.process_time()
    rewards = [reward for of_group in manager.rewards(rollouts, scores, [0.1] * len(rollouts)) for reward in of_group]
    end, end_busy = time.perf_counter(), time.process_time()
    return {
        "responses": len(rewards),
        "response_tokens_mean": float(np.mean([len(r.token_ids) for rollout in rollouts for r in rollout.responses])),
        "valid_splices": sum(reward.splice_valid for reward in rewards),
        "seconds_splice": spliced - start,
        "seconds_rewards": end - scored,
        "seconds_ours": (spliced - start) + (end - scored),
        # What one core does for it, whatever else the machine is doing.
        "cpu_seconds_ours": (spliced_busy - busy) + (end_busy - made_up),
        "responses_per_second": len(rewards) / ((spliced - start) + (end - scored)),
    }


def _rollout(tokenizer: Any, number: int, group: BenchGroup) -> RolloutGroup:
    """The group's tokens as text with tags around reasoning and answer, as a policy that knows the format writes it."""
    reference = _REFERENCE_ANSWERS[number % len(_REFERENCE_ANSWERS)]
    prompt = Prompt(
        number, group.prompt, ({"role": "user", "content": tokenizer.decode(group.prompt)},), reference, "bench"
    )
    responses = []
    for reasoning, answer in zip(group.reasonings, group.answers, strict=True):
        thought, answered = tokenizer.decode(reasoning), tokenizer.decode(answer)
        text = f"<think>{thought}</think> <answer>{answered}</answer>{tokenizer.eos_token}"
        tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        responses.append(Response(tokens, text, (0.0,) * len(tokens), "stop", seed=0))
    return RolloutGroup(prompt, tuple(responses))


def _scores(rng: np.random.Generator, request: ScoreRequest) -> TokenScores:
    log_probs = -rng.exponential(1.0, request.stop - request.start).astype(np.float32)
    return TokenScores(log_probs, -log_probs)
