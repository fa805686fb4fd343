"""Folders of runs as trainings leave them, with whatever texts and numbers a test wants in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_rlpr.config.loading import save_resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.evaluation.comparison import write_summary
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.types import (
    Prompt,
    ReferenceScores,
    Response,
    ResponseReward,
    RolloutGroup,
    ScoredGroup,
    TokenScores,
)

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
PHASES = {"rollout": 2.0, "score": 1.0, "reward": 0.5, "update": 3.0, "hand_over": 0.25}
STEP_SECONDS = 7.0
REFERENCE_PROBABILITIES = (0.25, 0.75)


def response_text(answer: str, thought: str = "adding") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def group(number: int, texts: Sequence[str], reference: str = "11", question: str = "5+6?") -> ScoredGroup:
    """A prompt and its responses; the k-th has a reward of k / 10. The reference is two tokens, its halves."""
    prompt = Prompt(number, (5, 6), ({"role": "user", "content": question},), reference, "quickstart/sums")
    made = tuple(Response((7, 8), text, (-0.5, -0.25), "stop", seed) for seed, text in enumerate(texts))
    scores = tuple(TokenScores(np.array([-0.5, -0.25], np.float32), np.ones(2, np.float32)) for _ in texts)
    rewards = tuple(ResponseReward(k / 10, 0.5, 0.2, 1.0, 0.0, True, f"answer {k}") for k in range(len(texts)))
    scored = ReferenceScores((1, 2), np.log(np.array(REFERENCE_PROBABILITIES, np.float32)))
    return ScoredGroup(RolloutGroup(prompt, made), scores, rewards, (scored,) * len(texts))


def write_step(folder: Path, step: int, groups: Sequence[ScoredGroup], prompt: str = "5+6?") -> Path:
    """Store the groups; the first one was trained on, the second dropped by the filter, and so on."""
    texts = {(5, 6): prompt, (): "", (1,): "1", (1, 2): "11"}
    return write_rollouts(
        folder / "rollouts",
        step,
        groups,
        advantages=[[0.5] * len(one.rewards) if number % 2 == 0 else None for number, one in enumerate(groups)],
        kept=[number % 2 == 0 for number in range(len(groups))],
        decode=lambda ids: texts[tuple(ids)],
    )


def write_numbers(folder: Path, steps: int, **config: dict[str, object]) -> None:
    """All files of a run but its rollouts. config: sections with keys that differ from the defaults."""
    folder.mkdir(parents=True)
    settings = Config()
    settings.model.path = str(TOKENIZER)
    for section, keys in config.items():
        for key, value in keys.items():
            setattr(getattr(settings, section), key, value)
    save_resolved(settings, folder / "config.yaml")
    names = ("mean", "reference_probability", "base_probability", "format", "repetition")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, **{f"reward/{name}": 0.1 + step / (10 * steps) for name in names}}
            lengths = {f"{part}_length/mean": 30.0 - step / steps for part in ("response", "think", "answer")}
            actor = {f"actor/{name}": 1 / step for name in ("entropy", "clip_fraction", "grad_norm", "loss")}
            rollout = {"rollout/log_prob_gap": 1e-6, "rollout/log_prob_gap_max": 1e-5 * step}
            speed = {"tokens/s": 100.0 + step, "tokens/s_rollout": 300.0, "tokens/s_update": None}
            times = {"time/step": STEP_SECONDS, **{f"time/{name}": value for name, value in PHASES.items()}}
            kept = {"filter/threshold": 0.1, "filter/kept_fraction": 0.5}
            file.write(json.dumps({**record, **lengths, **actor, **rollout, **speed, **times, **kept}) + "\n")
    with (folder / "validation.jsonl").open("w") as file:
        for step, accuracy in ((0, 0.25), (steps, 0.5)):
            measures = {"accuracy": accuracy, "reward": 0.3, "reference_probability": 0.2, "format": 1.0}
            named = {f"val/val/greedy/{name}": value for name, value in measures.items()}
            file.write(json.dumps({"step": step, **named}) + "\n")
    before, after = {"accuracy": [0.0, 1.0, 0.0, 0.0]}, {"accuracy": [1.0, 1.0, 0.0, 0.0]}
    sets = {"validation_set": "val", "decoding": "greedy", "other_sets": {}}
    write_summary(folder / "summary.json", before, after, steps=steps, wall_time_s=60.0, peak_memory_gb=1.0, **sets)
