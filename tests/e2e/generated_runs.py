"""Short trainings on generated rollouts, without engines: a random model, right, wrong and broken answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from tiny_policy import TOKENIZER, question, row, save_model, write_rows
from training_runs import Workplace
from transformers import AutoTokenizer

from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores

STEPS, GROUPS, RESPONSES = 4, 5, 3


def make_place(folder: Path, seed: int) -> Workplace:
    """A random model of two layers, the rollouts of all steps and held-out questions."""
    save_model(folder / "model", seed=seed, fitted=False, num_hidden_layers=2)
    write_rows(folder / "val.parquet", [row(number) for number in range(3)])
    write_stored(folder / "rollouts", seed)
    return Workplace(folder, steps=STEPS)


def write_stored(folder: Path, seed: int) -> None:
    """Generated rollouts of all steps."""
    dice = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for step in range(1, STEPS + 1):
        write_rollouts(
            folder,
            step,
            [_group(tokenizer, dice, number) for number in dice.sample(range(400), GROUPS)],
            advantages=[None] * GROUPS,
            kept=[True] * GROUPS,
            decode=lambda ids: str(tokenizer.decode(list(ids))),
        )


def replay(place: Workplace) -> list[str]:
    """Arguments of a run on them."""
    return [
        *place.arguments,
        "data.train_files=[]",
        "data.val_files=[]",
        f"rollout.replay={place.folder / 'rollouts'}",
        f"rollout.n={RESPONSES}",
        "trainer.collective_timeout_s=120",
    ]


def _group(tokenizer: Any, dice: random.Random, number: int) -> ScoredGroup:
    """Answers to a question; a replay looks at prompt and responses alone."""
    messages = row(number)["prompt"]
    templated = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(templated, add_special_tokens=False)["input_ids"]
    prompt = Prompt(number, tuple(ids), tuple(messages), question(number)[1], "quickstart/sums")
    responses = []
    for _ in range(RESPONSES):
        close = dice.choice(["</think>", "</think>", ""])
        text = f"<think> so {dice.randrange(40)} {close} <answer> {dice.randrange(40)} </answer>{tokenizer.eos_token}"
        tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        log_probs = tuple(dice.uniform(-8, -4) for _ in tokens)
        responses.append(Response(tokens, tokenizer.decode(tokens), log_probs, "stop", dice.randrange(2**31)))
    zeros = [np.zeros(len(response.token_ids), np.float32) for response in responses]
    scores = tuple(TokenScores(each, each) for each in zeros)
    rewards = tuple(ResponseReward(0.0, 0.0, 0.0, 0.0, 0.0, True, "") for _ in responses)
    return ScoredGroup(RolloutGroup(prompt, tuple(responses)), scores, rewards)
