"""Whatever lies in a data file: it is used faithfully, or refused in one line that names file and row or column."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated_cases import SEED, case_count
from odd_data_files import DataFile, broken_file, flipped_file, good_file
from time_limit import time_limit

from megatron_rlpr.data.carried_groups import from_state, to_state
from megatron_rlpr.data.dataset import load_prompts
from megatron_rlpr.data.tokenizer import SpecialTokens
from megatron_rlpr.grading.dispatch import grade
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.rollout.store import read_rollouts, write_rollouts
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores, UserError

CASES = case_count(300)
LIMIT_S = 60
LONGEST_MESSAGE = 1500
FORMS = {"openai/gsm8k": "#### {}", "lighteval/MATH": r"\boxed{{{}}}"}


@pytest.mark.parametrize("part", range(10))
def test_a_generated_file_is_used_faithfully_or_refused_with_its_place(
    part: int, tokenizer: Any, tmp_path: Path
) -> None:
    tasks = GradeTasks(SpecialTokens.of(tokenizer), "R1")
    for case in range(part, CASES, 10):
        rng = random.Random(f"{SEED} {case}")
        made = rng.choices([good_file, broken_file, flipped_file], [3, 5, 2])[0](rng)
        path = tmp_path / f"case_{case}.parquet"
        made.write(path, rng)
        with time_limit(LIMIT_S):
            try:
                prompts = load_prompts([path], tokenizer, 512, overlong="refuse", check=tasks.check).prompts
            except UserError as error:
                refused_in_one_line(str(error), path, made, case)
                continue
            assert not made.refused, f"case {case}: accepted, but {made.refused}"
            used_faithfully(prompts, made, tasks, tmp_path, case)


def refused_in_one_line(message: str, path: Path, made: DataFile, case: int) -> None:
    assert str(path) in message, f"case {case}: {message}"
    assert "\n" not in message
    assert len(message) < LONGEST_MESSAGE, f"case {case}: {len(message)} characters"
    assert made.refused in message, f"case {case}: expected {made.refused!r} in {message}"
    assert made.refused or made.damage, f"case {case}: refused, but nothing is wrong: {message}"


def used_faithfully(prompts: tuple[Prompt, ...], made: DataFile, tasks: GradeTasks, folder: Path, case: int) -> None:
    if made.damage is None:  # a flipped bit may be that of a name
        assert [row(prompt) for prompt in prompts] == [
            {name: made.columns[name][number] for name in row(prompts[0])} for number in range(made.rows)
        ], f"case {case}"
        assert [text(prompt.extra) for prompt in prompts] == [text(extra) for extra in made.extra], f"case {case}"
    assert all(prompt.token_ids for prompt in prompts)
    for prompt in prompts:
        answer = FORMS.get(prompt.data_source, "<answer>{}</answer>").format(prompt.reference_answer)
        for phase in ("train", "validation"):
            task = tasks.task(prompt, response(f"<think>t</think> {answer}<|im_end|>"), phase)
            assert grade(task).accuracy == 1, f"case {case}: {task}"
    groups = [group(prompt) for prompt in prompts]
    write_rollouts(folder, 1, groups, advantages=[None] * len(groups), kept=[True] * len(groups), decode=str)
    stored = [group.prompt for group in read_rollouts(folder, 1)]
    carried = [scored.group.prompt for scored in from_state(json.loads(json.dumps(to_state(groups))))]
    assert stored == carried == list(prompts), f"case {case}"
    for back in (stored, carried):
        assert [text(prompt.extra) for prompt in back] == [text(prompt.extra) for prompt in prompts], f"case {case}"


def row(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt": [dict(message) for message in prompt.messages],
        "data_source": prompt.data_source,
        "reward_model": {"ground_truth": prompt.reference_answer, "style": "rule"},
    }


def text(extra: dict[str, Any]) -> str:
    """Comparable: a NaN is no NaN's equal."""
    return json.dumps(extra, sort_keys=True)


def response(said: str) -> Response:
    return Response((5,), said, (-0.5,), "stop", 1)


def group(prompt: Prompt) -> ScoredGroup:
    scores = TokenScores(np.array([-0.5], np.float32), np.array([1], np.float32))
    reward = ResponseReward(0.1, 0.6, 0.2, 1.0, -0.5, True, "11", 1.0)
    return ScoredGroup(RolloutGroup(prompt, (response("4"),)), (scores,), (reward,))
