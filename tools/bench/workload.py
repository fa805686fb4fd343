"""The groups a benchmark scores and trains on: prompts, responses and reference answers of realistic lengths.

Lengths come from a seeded generator, uniform within a few percent of what is asked for. Tokens are real text where
`--data` names a folder of JSON Lines files, random ids otherwise; neither changes how long anything takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_rlpr.types import ScoreRequest, UserError

PROMPT_SPREAD, RESPONSE_SPREAD = 0.12, 0.15
ANSWER_TOKENS = 8
"""Tokens of a response behind its reasoning; a reference answer takes their place."""
_CHARACTERS = 2_000_000

Tokens = tuple[int, ...]
DrawTokens = Callable[[int], Tokens]


@dataclass(frozen=True)
class BenchGroup:
    """A prompt, n responses (reasoning + answer) and the reference answer that is spliced in place of each answer."""

    prompt: Tokens
    reasonings: tuple[Tokens, ...]
    answers: tuple[Tokens, ...]
    reference: Tokens

    @property
    def responses(self) -> list[ScoreRequest]:
        """The log-probs of every whole response."""
        start = len(self.prompt)
        return [
            ScoreRequest(self.prompt + reasoning + answer, start, start + len(reasoning) + len(answer))
            for reasoning, answer in zip(self.reasonings, self.answers, strict=True)
        ]

    @property
    def spliced(self) -> list[ScoreRequest]:
        """The log-probs of the reference answer behind every reasoning."""
        starts = [len(self.prompt) + len(reasoning) for reasoning in self.reasonings]
        return [
            ScoreRequest(self.prompt + reasoning + self.reference, start, start + len(self.reference))
            for start, reasoning in zip(starts, self.reasonings, strict=True)
        ]


@dataclass(frozen=True)
class Sizes:
    """How many groups of how many responses, and mean tokens of prompt, response and reference answer."""

    groups: int
    n: int
    prompt: int
    response: int
    reference: int


def make_groups(sizes: Sizes, draw: DrawTokens, seed: int = 0) -> list[BenchGroup]:
    """Groups of these sizes; the same seed gives the same lengths."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(sizes.groups):
        responses = [_around(rng, sizes.response, RESPONSE_SPREAD) for _ in range(sizes.n)]
        groups.append(
            BenchGroup(
                prompt=draw(_around(rng, sizes.prompt, PROMPT_SPREAD)),
                reasonings=tuple(draw(max(1, tokens - ANSWER_TOKENS)) for tokens in responses),
                answers=tuple(draw(ANSWER_TOKENS) for _ in responses),
                reference=draw(max(1, sizes.reference + int(rng.integers(-1, 2)))),
            )
        )
    return groups


def random_tokens(vocab_size: int, seed: int = 0) -> DrawTokens:
    """Draws uniformly random ids."""
    rng = np.random.default_rng(seed)
    return lambda count: tuple(int(token) for token in rng.integers(0, vocab_size, count))


def text_tokens(folder: Path, tokenizer: Any, seed: int = 0) -> DrawTokens:
    """Draws consecutive tokens from random places of a folder's text (all strings of its *.jsonl files)."""
    text = "\n".join(_strings(folder))
    pool: npt.NDArray[np.int64] = np.asarray(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
    )
    rng = np.random.default_rng(seed)

    def draw(count: int) -> Tokens:
        if count >= len(pool):
            raise UserError(
                f"--data {folder} holds {len(pool)} tokens of text, {count} in a row are needed: name a folder with "
                "more"
            )
        start = int(rng.integers(0, len(pool) - count))
        return tuple(pool[start : start + count].tolist())

    return draw


def _around(rng: np.random.Generator, mean: int, spread: float) -> int:
    return max(1, round(mean * float(rng.uniform(1 - spread, 1 + spread))))


def _strings(folder: Path) -> Iterator[str]:
    """Strings of the files' rows in order, about as many characters as a benchmark needs."""
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"--data {folder} holds no *.jsonl file: name a folder of JSON Lines files with text in them, or leave it "
            "out"
        )
    for file in files:
        left = _CHARACTERS // len(files)
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{file} line {number} is not JSON ({error})") from None
                for value in row.values() if isinstance(row, dict) else ():
                    if isinstance(value, str):
                        left -= len(value)
                        yield value
                if left < 0:
                    break
