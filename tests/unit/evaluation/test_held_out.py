"""A validation grades what the policy answered, asks the judge that the environment names, and reports what the judge
did."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch.distributed as dist
from judge_server import JudgeServer, http, raw_server

from megatron_rlpr.config.schema import ActorConfig, Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.tokenizer import SpecialTokens
from megatron_rlpr.evaluation.held_out import VALIDATION_STEP, HeldOutEvaluation, ValidationResult, ValidationSet
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_settings import JudgeSettings, judge_settings
from megatron_rlpr.evaluation.validation_metrics import validation_metrics
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.rollout.replay import ReplayRollouts
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.run.build import scoring_settings
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.metric_names import undocumented
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores

RIGHT, WRONG, ODD = "<answer>4</answer>", "<answer>5</answer>", "<answer>twice two</answer>"


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def scored_group(index: int, responses: tuple[str, ...]) -> ScoredGroup:
    """A stored group: two questions from Math-500 have these responses."""
    prompt = Prompt(index, (1, 2), ({"role": "user", "content": f"What is 2+2? ({index})"},), "4", "Math-500_Avg2")
    score = TokenScores(np.zeros(1, np.float32), np.zeros(1, np.float32))
    answers = tuple(Response((7,), text, (0.0,), "stop", seed) for seed, text in enumerate(responses))
    reward = ResponseReward(0.0, 0.0, 0.0, 0.0, 0.0, True, "")
    return ScoredGroup(RolloutGroup(prompt, answers), (score,) * len(answers), (reward,) * len(answers))


def validate(
    folder: Path, judge: Judge | None, wrong: str = WRONG, weights: str = "initial"
) -> tuple[ValidationResult, str]:
    """The result of a validation whose responses are stored, and what it printed. Nothing is scored, so there is no
    policy."""
    groups = [scored_group(0, (RIGHT, ODD)), scored_group(1, (wrong, ODD))]
    write_rollouts(folder, VALIDATION_STEP, groups, advantages=[None] * 2, kept=[True] * 2, decode=str)
    config = Config()
    config.evaluation.score_reward = False
    config.reward.format_mode = "R1_nothink"
    printed = io.StringIO()
    one = ValidationSet("Math-500_Avg2", PromptSet(tuple(g.group.prompt for g in groups), 0), 2)
    no_scorer: Any = None
    with closing(GraderPool(workers=1, timeout_s=5.0)) as graders:
        console = Console(enabled=False, file=printed)
        tasks = GradeTasks(SpecialTokens(["<|im_end|>"]), "R1_nothink")
        parts = (ReplayRollouts(folder), no_scorer, graders, console, tasks, judge)
        evaluation = HeldOutEvaluation(config, *parts, folder / "validation", lambda: weights, {}, {}, Shares())
        return evaluation.run([one], 0)[0], printed.getvalue()


@pytest.mark.parametrize("scored", [True, False])
def test_scores_of_another_precision_are_not_gone_on_from(tmp_path: Path, scored: bool) -> None:
    config, nobody = Config(), cast(Any, None)
    config.evaluation.score_reward = scored
    one = ValidationSet("Math-500_Avg2", PromptSet((), 0), 2)
    keys = []
    for recipe in ("blockwise", "tensorwise"):
        config.actor = ActorConfig(fp8="hybrid", fp8_recipe=recipe)
        parts = (nobody,) * 6
        scoring = scoring_settings(config)
        evaluation = HeldOutEvaluation(config, *parts, tmp_path, lambda: "weights", {}, scoring, Shares())
        keys.append(evaluation.answers(one, "greedy", 0).key)
    assert (keys[0] != keys[1]) == scored


def test_without_a_judge_the_rules_decide_and_no_judge_is_reported(tmp_path: Path) -> None:
    result, printed = validate(tmp_path, None)
    assert result.per_prompt["accuracy"] == [0.5, 0.0]
    assert not [name for name in result.metrics() if "judge" in name]
    assert printed == ""


def test_the_judge_turns_wrong_into_right_and_is_reported(tmp_path: Path) -> None:
    server = JudgeServer(
        lambda request, _: (200, "\\boxed{Y}" if "twice two" in request["messages"][1]["content"] else "\\boxed{N}")
    )
    settings = judge_settings({"CLIENT_IP": server.url})
    assert settings is not None
    result, printed = validate(tmp_path, Judge(settings))
    server.stop()
    assert result.per_prompt["accuracy"] == [1.0, 0.5]
    metrics = validation_metrics([result])
    assert metrics["val_greedy/test_acc/Math-500_Avg2"] == 0.75
    assert metrics["val/Math-500_Avg2/greedy/accuracy"] == 0.75
    assert metrics["val/Math-500_Avg2/greedy/judge_turned"] == 0.5
    assert metrics["val/Math-500_Avg2/greedy/judge_failures"] == 0
    assert undocumented(metrics) == []
    assert printed == ""
    assert len(server.requests) == 3, "the one right answer is not asked about"
    assert all("What is 2+2?" in request["messages"][1]["content"] for request in server.requests)
    assert {request["model"] for request in server.requests} == {"qwen"}, "the name that setup_server.sh serves"


def test_what_the_judge_fails_to_judge_keeps_its_verdict_and_is_counted(tmp_path: Path) -> None:
    server = JudgeServer(lambda request, _: (400, ""))
    result, printed = validate(tmp_path, Judge(JudgeSettings("qwen", server.url + "/v1", "none", retries=0)))
    server.stop()
    assert result.per_prompt["accuracy"] == [0.5, 0.0]
    assert result.judge == {"judge_turned": 0.0, "judge_failures": 3.0, "judge_failures/status_400": 3.0}
    assert undocumented(result.metrics()) == []
    assert printed == "the judge failed to judge 3 of 4 responses: 3 status 400\n"


def test_accuracies_have_the_references_names_over_all_sets_of_a_source() -> None:
    sets = {"a": ("quickstart/sums", "MATH"), "b": ("quickstart/sums",)}
    values = {"a": [1.0, 0.0], "b": [0.5]}
    results = [ValidationResult(name, "greedy", {"accuracy": values[name]}, 3.0, sets[name]) for name in sets]
    metrics = validation_metrics(results)
    assert metrics["val_greedy/test_acc/quickstart/sums"] == 0.75
    assert metrics["val_greedy/test_acc/MATH"] == 0.0
    assert metrics["val/a/greedy/accuracy"] == 0.5
    assert undocumented(metrics) == []


def test_what_is_answered_is_neither_generated_nor_judged_again(tmp_path: Path) -> None:
    """Until the weights are others. Which responses are generated shows in what the changed store would give."""
    server = JudgeServer(lambda request, _: (200, "\\boxed{Y}"))
    settings = judge_settings({"CLIENT_IP": server.url})
    assert settings is not None
    first, printed = validate(tmp_path, Judge(settings))
    assert (printed, len(server.requests)) == ("", 3)
    again, printed = validate(tmp_path, Judge(settings), RIGHT)
    assert again == first
    assert printed.startswith("Math-500_Avg2, greedy: 2 of 2 prompts are answered already")
    assert len(server.requests) == 3
    other, printed = validate(tmp_path, Judge(settings), RIGHT, weights="trained")
    assert (printed, len(server.requests)) == ("", 5)
    server.stop()
    assert other.per_prompt["accuracy"] == [1.0, 1.0]
    table = pd.read_csv(tmp_path / "validation/step_000000/Math-500_Avg2.greedy.csv")
    assert list(table.graded_by) == ["rule", "judge", "rule", "judge"]
    assert list(table.extracted_answer.astype(str)) == ["4", "twice two", "4", "twice two"]


def test_what_no_grader_could_judge_is_reported(tmp_path: Path) -> None:
    endless = "<answer>((x**9+y)**9+x)**9</answer>"  # simplifying it takes minutes
    result, printed = validate(tmp_path, None, endless)
    assert result.per_prompt["accuracy"] == [0.5, 0.0]
    assert printed == "the graders failed to judge 1 of 4 responses: 1 time limit\n"


PAGE = b"<html>It works!</html>"
FAILURES: dict[str, tuple[list[bytes], str]] = {
    "garbage": ([http(b"\x00\xff\xfe")], "a_reply_that_is_no_JSON"),
    "429": ([http(b"", "429 Too Many Requests", "text/plain", "Retry-After: 3600")], "status_429"),
    "half a reply": ([b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"], "RemoteProtocolError"),
    "wrong content type": ([http(PAGE, "200 OK", "text/html")], "a_reply_that_is_no_JSON"),
    "slow": ([b""], "time_limit"),
    "down": ([], "ConnectError"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_where_the_judge_fails_the_figures_are_those_of_the_rules(tmp_path: Path, failure: str) -> None:
    pieces, cause = FAILURES[failure]
    over = threading.Event()

    def answer() -> Iterator[bytes]:
        yield from pieces
        if failure == "slow":
            over.wait()

    with raw_server(answer) as url:
        address = "http://127.0.0.1:9" if failure == "down" else url
        settings = JudgeSettings("qwen", address + "/v1", "none", timeout_s=0.5 if failure == "slow" else 60, retries=1)
        begun = time.monotonic()
        judged, printed = validate(tmp_path / "judged", Judge(settings))
        took = time.monotonic() - begun
        over.set()
    rules, _ = validate(tmp_path / "rules", None)
    assert judged.per_prompt == rules.per_prompt
    assert {n: v for n, v in judged.metrics().items() if "judge" not in n} == rules.metrics()
    assert judged.judge["judge_failures"] == judged.judge[f"judge_failures/{cause}"] == 3
    assert printed.startswith("the judge failed to judge 3 of 4 responses: 3 ")
    assert took < 30
