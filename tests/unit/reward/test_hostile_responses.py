"""Responses as a policy gone astray, or one that attacks its graders, may write them.

RLPR_SEED and RLPR_CASES choose other responses, and more of them, than the default.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated_cases import SEED, case_count
from rollout_records import TOKENIZERS, prompt, response
from time_limit import time_limit

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.sources import SOURCES
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.evaluation.judge_prompts import boxed_letter, judge_prompt
from megatron_rlpr.grading.dispatch import grade
from megatron_rlpr.grading.format import format_score, rule_format_score
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeTask
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.answer_tags import extract_answer, find_answer_slot
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.metrics import final_reward_distribution, length_metrics
from megatron_rlpr.reward.repetition import repetition_penalty
from megatron_rlpr.rollout.store import read_rollouts, write_rollouts
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoredGroup, ScoreRequest, TokenScores

CASES = case_count(200)
GROUP = 4
EOS, PAD = "<|im_end|>", "<|endoftext|>"
REPEATED = (
    "<think>", "</think>", "<answer>", "</answer>", "<answer></answer>", "7", "{", "}", "{}", " ", "\n", "\u00a0", "\\",
    r"\frac", r"\boxed{", r"\boxed ", r"\text{ ", "a\u0301", "\U0001f680", "the answer is ", "The correct answer is ",
    "be is =", ",111", ". ", "#### 1", "答案是", PAD, EOS, "<|im_", "_", "user\n", "word ", "\0",
)  # fmt: skip
READERS: dict[str, Callable[[str], object]] = {
    "format": lambda text: format_score(text, "R1"),
    "format of a box": lambda text: rule_format_score(text, r"\boxed{}", "R1"),
    "slot": lambda text: find_answer_slot(text, "R1", EOS, PAD),
    "extracted": extract_answer,
    "repetition": repetition_penalty,
    "special tokens": SpecialTokens([EOS, PAD, "<|im_start|>"]).removed_from,
    "judge": lambda text: (judge_prompt(task("gpqa_diamond", text)), boxed_letter(text)),
    **{source: lambda text, s=source: grade(task(s, text)) for source in ("quickstart/", "openai/gsm8k", "MMLUPro")},
    **{source: lambda text, s=source: grade(task(s, text)) for source in ("lighteval/MATH", "Math-500")},
}
PIECES = (
    "<think>", "</think>", "<answer>", "</answer>", "<answer", "answer>", "</ answer>", "<ANSWER>", "<｜answer｜>",
    "\\boxed{", "\\fbox{", "}", "{", "\\frac{1}", "\\frac12", "\\sqrt", "√(x+1)", "\\text{ cm}", "$", "\\(", "^{", "_{",
    "\\input{/etc/passwd}", "\\write18{touch hostile}", "__import__('os').system('touch hostile')",
    "open('hostile','w')",
    "().__class__.__bases__", "exec('1')", "lambda: 0", "9**9**9", "10^{10^{10}}", "1e999999", "1e-400",
    "factorial(9999)",
    "x", "+", "3.5", "-", "1,000", "50%", "#### ", "ANSWER: ", "Answer: A", "The answer is ",
    "The correct answer is (",
    "A", "B.", "答案是", "。", "user\n", "assistant\n", EOS, PAD, "<|im_start|>", "<eos>", "<end_of_turn>",
    "<0x0A>", " ",
    "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\u200b", "\u202e", "\ufeff", "e\u0301\u0301\u0301",
    "\U0001f469\u200d\U0001f680",
    "\ud7ff", "\uffff", "\x1b[31m", "\x07", "\0", "%s%n", "{0}", "'; DROP TABLE", "true", "None", "nan", "-inf", "∞",
)  # fmt: skip
RIGHT = {"choice_of_16": "B", "choice_of_4": "B"}
NUMBER = "48151"
"""A reference answer that no piece holds: it is in a response only where the generator puts it."""


def task(source: str, text: str) -> GradeTask:
    return GradeTask(source, text, "B", "user\nWhich?\nOptions:\nA. one\nB. two\n")


@pytest.mark.parametrize("reader", READERS)
def test_a_megabyte_of_one_thing_is_read_in_time(reader: str) -> None:
    """Each of these took minutes to hours where a reader goes over the same text again and again."""
    size = 10**6 if reader not in ("MMLUPro", "Math-500") else 2 * 10**5
    for piece in REPEATED:
        filling = piece * (size // len(piece))
        for text in (filling, f"<think>r</think><answer>\\boxed{{{filling}x"):
            with time_limit(20.0):
                READERS[reader](text)


def hostile_text(random_: random.Random, right: str) -> str:
    """A mixture of pieces, half of them around a response that is well formed, some of them very long."""
    mixture = "".join(random_.choices(PIECES, k=random_.randrange(40)))
    match random_.randrange(8):
        case 0:
            return mixture
        case 1:
            return f"<think>{mixture}</think> <answer> {right} </answer>"
        case 2:
            return f"<think> r </think>{mixture}<answer>{mixture}{right}</answer>{mixture}"
        case 3:
            return random_.choice(PIECES) * random_.randrange(2, 3000)
        case 4:
            return f"<think>r</think><answer>{random_.choice(PIECES) * random_.randrange(2, 1500)}{right}</answer>"
        case 5:
            return "".join(
                chr(random_.choice((random_.randrange(32), random_.randrange(0x20, 0xD800)))) for _ in "x" * 200
            )
        case 6:
            return f"<think>r</think><answer>{mixture}" + " " * random_.randrange(3000)
        case _:
            return f"{mixture} The answer is \\boxed{{{right}}}"


def hostile_groups(tokenizer: Any, random_: random.Random, count: int) -> list[RolloutGroup]:
    sources = [source for source in SOURCES if source.grader != "program"]
    groups = []
    for _ in range(count):
        source = random_.choice(sources)
        right = RIGHT.get(source.grader, NUMBER)
        asked = prompt(tokenizer, right, source.pattern)
        texts = (hostile_text(random_, random_.choice((right, "12"))) for _ in range(GROUP))
        groups.append(RolloutGroup(asked, tuple(response(tokenizer, t, random_.random() < 0.8) for t in texts)))
    return groups


def check_request(tokenizer: Any, asked: Prompt, given: Response, request: ScoreRequest | None, mode: str) -> None:
    """The scored tokens are those of the reference answer, behind an answer tag that is behind the prompt."""
    assert request is None or find_answer_slot(given.text, mode, tokenizer.eos_token, tokenizer.pad_token) is not None
    if request is None:
        return
    assert len(asked.token_ids) < request.start < request.stop == len(request.token_ids)
    assert request.token_ids[: len(asked.token_ids) - 1] == asked.token_ids[:-1]
    scored = tokenizer.decode(list(request.token_ids[request.start :]))
    assert scored.strip(" \n\t\r>") == asked.reference_answer
    before = tokenizer.decode(list(request.token_ids[: request.start]), skip_special_tokens=False)
    assert (before + scored.split(asked.reference_answer)[0]).rstrip(" \n\t\r").endswith("<answer>")


@pytest.mark.parametrize("number", range(4))
def test_any_response_goes_through_all_that_reads_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a response that is executed would leave a file
    random_ = random.Random(SEED * 1000 + number)
    tokenizer = load_tokenizer(str(TOKENIZERS / ("bpe_base", "bpe_chat", "sp_gemma_like")[number % 3]))
    mode = ("R1", "R1_nothink")[number // 2]
    with time_limit(300.0), closing(GraderPool(timeout_s=5.0)) as graders:
        tasks = GradeTasks(SpecialTokens.of(tokenizer), mode)
        groups = hostile_groups(tokenizer, random_, math.ceil(CASES / GROUP / 4))

        def accuracies(pairs: Any) -> list[float]:
            asked = [tasks.task(p, r, random_.choice(("train", "validation"))) for p, r in pairs]
            results = graders.grade_many(asked)
            for one, result in zip(asked, results, strict=True):
                check_grade(one, result.accuracy, result.extracted)
            return [result.accuracy for result in results]

        for manager, splice in (("mix", "text"), ("prob", "tokens")):
            config = RewardConfig(
                reward_manager=manager, splice=splice, format_mode=mode, shaping_function_name="threshold_0",
                vr_weight=0.5, pr_weight=0.5, repetition_penalty=True,
            )  # fmt: skip
            rewards = RewardManager(config, tokenizer, 10_000, 10_000, accuracies)
            requests = rewards.reference_requests(groups)
            for group, wanted in zip(groups, requests, strict=True):
                for given, request in zip(group.responses, wanted, strict=True):
                    check_request(tokenizer, group.prompt, given, request, mode)
            scores = [[None if q is None else certain(q.stop - q.start) for q in wanted] for wanted in requests]
            made = rewards.rewards(groups, scores, [0.25] * len(groups))
            for parts in (one for each in made for one in each):
                assert parts.repetition in (-1.0, 0.0)
                assert 0.0 <= parts.reward - parts.repetition <= 1.0
    own = [tuple(certain(len(r.token_ids)) for r in group.responses) for group in groups]
    scored = [ScoredGroup(*parts) for parts in zip(groups, own, made, strict=True)]
    assert all(map(math.isfinite, length_metrics(tokenizer, scored, mode).values()))
    assert final_reward_distribution(parts.reward for each in made for parts in each)
    write_rollouts(
        "rollouts", 1, scored, advantages=[None] * len(groups), kept=[True] * len(groups), decode=tokenizer.decode
    )
    assert read_rollouts("rollouts", 1) == groups
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts"], "something in a response was executed"


def check_grade(asked: GradeTask, accuracy: float, extracted: str) -> None:
    """Right only where the reference answer stands in the response; nothing of this machine is in what was read."""
    assert accuracy in (0.0, 1.0)
    assert "root:" not in extracted
    if accuracy:
        assert asked.reference_answer in asked.response_text.replace(",", "")
        if asked.data_source.startswith("quickstart/"):
            assert "<answer>" in asked.response_text.partition("</answer>")[0]


def certain(tokens: int) -> TokenScores:
    return TokenScores(np.zeros(tokens, np.float32), np.zeros(tokens, np.float32))
