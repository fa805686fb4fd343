"""Judge the policy on held-out prompts: generate, score, grade, store, and report one value per prompt and measure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.evaluation.answers import Answers, Failures
from megatron_rlpr.evaluation.intervals import share_interval
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.pass_at_k import mean_pass_at_k
from megatron_rlpr.grading.format import format_score
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeResult
from megatron_rlpr.grading.tasks import GradeTasks, prompt_text
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.shares import Array, Shares
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import Prompt, ResponseReward, RolloutGroup

VALIDATION_STEP = 0
"""Validation always samples as step 0 of evaluation.seed, so that two validations differ by the weights alone."""


@dataclass(frozen=True)
class ValidationSet:
    """One validation file: its name (the file's stem), prompts and samples per prompt."""

    name: str
    prompts: PromptSet
    samples_per_prompt: int

    @property
    def prompt_set(self) -> str:
        """Its name among the prompt sets of the run, the training prompts included."""
        return f"val_{self.name}"


@dataclass(frozen=True)
class ValidationResult:
    """What one decoding strategy reached on one validation set.

    per_prompt: measure -> one value per prompt (the mean of its samples), in file order, so that two results on the
    same prompts can be compared pairwise. data_sources: of every prompt. judge: what the judge did, by metric name;
    empty without one. samples: answers per prompt.
    """

    name: str
    strategy: str
    per_prompt: dict[str, list[float]]
    response_length: float
    data_sources: tuple[str, ...] = ()
    judge: dict[str, float] = field(default_factory=dict)
    samples: int = 1

    @staticmethod
    def of_rows(
        name: str, strategy: str, rows: Sequence[Mapping[str, Any]], judge: dict[str, float]
    ) -> ValidationResult:
        """From the rows of `answers.SCHEMA`, by prompt and sample."""
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row["prompt_row"])]
        scored = [m for m in ("reward", "reference_probability") if all(row[m] is not None for row in rows)]
        per_prompt = {
            measure: [float(np.mean([row[measure] for row in group])) for group in groups]
            for measure in (*scored, "format", "accuracy")
        }
        length = float(np.mean([row["response_tokens"] for row in rows]))
        sources = tuple(group[0]["data_source"] for group in groups)
        return ValidationResult(name, strategy, per_prompt, length, sources, judge, len(groups[0]))

    def mean(self, measure: str) -> float:
        """Over the prompts."""
        return float(np.mean(self.per_prompt[measure]))

    @property
    def pass_at_k(self) -> dict[int, float]:
        """k -> mean pass@k over the prompts."""
        right = [round(share * self.samples) for share in self.per_prompt["accuracy"]]
        return mean_pass_at_k(self.samples, right)

    def metrics(self) -> dict[str, float]:
        """Flat names for the trackers: val/<set>/<strategy>/<measure>."""
        prefix = f"val/{self.name}/{self.strategy}"
        interval = share_interval(self.per_prompt["accuracy"])
        named = {
            **{measure: self.mean(measure) for measure in self.per_prompt},
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            **{f"pass@{k}": value for k, value in self.pass_at_k.items()},
            "response_length": self.response_length,
            **self.judge,
        }
        return {f"{prefix}/{name}": value for name, value in named.items()}


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Runs every configured strategy on every validation set. All ranks call it together; those that own the texts
    grade them, the first one asks the judge and stores every answer.

    folder: holds a folder per step (`answers`). weights: the checksum of those that the engines hold. fingerprints: of
    model, tokenizer and prompt sets (`run.continuity`). scoring: how the policy scores, its precision above all.
    """

    config: Config
    rollouts: Rollouts
    scorer: GroupScorer
    graders: GraderPool
    console: Console
    tasks: GradeTasks
    judge: Judge | None
    folder: Path
    weights: Callable[[], str]
    fingerprints: Mapping[str, str]
    scoring: Mapping[str, Any]
    shares: Shares

    def run(self, sets: Sequence[ValidationSet], step: int) -> list[ValidationResult]:
        """Results in the order of the sets, then of evaluation.strategies. step: that the weights are of.

        Prompts whose answers are stored already, of the same weights and settings, are neither generated nor judged
        again.
        """
        if self.judge is not None:
            self.judge.begin_validation()
        return [self._validate(one, strategy, step) for one in sets for strategy in self.config.evaluation.strategies]

    def _validate(self, one: ValidationSet, strategy: str, step: int) -> ValidationResult:
        answers = self.answers(one, strategy, step)
        stored = first_rank_decides(answers.finished)
        prompts = one.prompts.prompts
        waiting = [prompt for prompt in prompts if prompt.index not in stored]
        if stored:
            before = f"{len(prompts) - len(waiting)} of {len(prompts)} prompts are answered already ({answers.table})"
            self.console.message(f"{one.name}, {strategy}: {before}")
        size = self.config.evaluation.prompts_per_piece
        pieces = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        for number, piece in enumerate(pieces, 1):
            label = one.name if len(pieces) == 1 else f"{one.name}, part {number} of {len(pieces)}"
            groups = self._generate(one, piece, strategy, label)
            rewards = self._rewards(one, groups, label)
            graded = partial(self._graded, groups, rewards)
            of_ranks = self.shares.gather(graded, "grading the answers", first_only=True)
            first_rank_decides(partial(self._store, answers, of_ranks))
        return first_rank_decides(partial(self._result, one, strategy, answers))

    def answers(self, one: ValidationSet, strategy: str, step: int) -> Answers:
        """Where these answers are stored, and all that they depend on."""
        config, settings = self.config, self.judge.settings if self.judge else None
        rollout = config.rollout
        made_from = {
            "weights": self.weights(),
            "prompts": self.fingerprints.get(one.prompt_set, ""),
            "model": self.fingerprints.get("model", ""),
            "tokenizer": self.fingerprints.get("tokenizer", ""),
            "sampling": [asdict(self._sampling(strategy)), self._samples(one, strategy), config.evaluation.seed],
            "precision": [rollout.dtype, rollout.quantization, rollout.kv_cache_dtype],
            "format_mode": config.reward.format_mode,
            "scoring": [asdict(config.reward), dict(self.scoring)] if config.evaluation.score_reward else [],
            "judge": settings.asked if settings else {},
        }
        return Answers(StepFolders(self.folder).path(step), f"{one.name}.{strategy}", made_from)

    def _samples(self, one: ValidationSet, strategy: str) -> int:
        return 1 if strategy == "greedy" else self.config.evaluation.n or one.samples_per_prompt

    def _sampling(self, strategy: str) -> SamplingSettings:
        settings, greedy = self.config.evaluation, strategy == "greedy"
        return SamplingSettings(
            temperature=0.0 if greedy else settings.temperature or self.config.rollout.temperature,
            top_p=1.0 if greedy else settings.top_p,
            max_tokens=self.config.data.max_response_length,
        )

    def _generate(self, one: ValidationSet, prompts: Sequence[Prompt], strategy: str, label: str) -> list[RolloutGroup]:
        samples, seed = self._samples(one, strategy), self.config.evaluation.seed
        with self.console.phase(f"answer {label}", total=len(prompts) * samples) as progress:
            asked = RolloutRequest(prompts, samples, VALIDATION_STEP, seed, self._sampling(strategy))
            return self.rollouts.generate(asked, progress.generated)

    def _rewards(
        self, one: ValidationSet, groups: Sequence[RolloutGroup], label: str
    ) -> list[tuple[ResponseReward, ...]] | None:
        if not self.config.evaluation.score_reward:
            return None
        with self.console.phase(f"score {label}") as progress:
            return [group.rewards for group in self.scorer.score(groups, one.prompt_set, progress.advance)]

    def _graded(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[tuple[ResponseReward, ...] | None] | None
    ) -> list[Array]:
        """What the rules say of this rank's prompts of a piece: rows of `answers.SCHEMA` and failures, as JSON."""
        given = rewards or [None] * len(groups)
        mine = [pair for pair in zip(groups, given, strict=True) if pair[0].owner == self.shares.rank]
        tasks = [self.tasks.task(group.prompt, r, "validation") for group, _ in mine for r in group.responses]
        before = self.graders.failures.copy()
        results, mode = iter(self.graders.grade_many(tasks)), self.config.reward.format_mode
        rows = [
            {
                **_verdict(next(results)),
                "prompt_row": group.prompt.index,
                "sample": sample,
                "data_source": group.prompt.data_source,
                "prompt": prompt_text(group.prompt.messages),
                "response": response.text,
                "reference_answer": group.prompt.reference_answer,
                "format": format_score(response.text, mode),
                "reward": scored[sample].reward if scored else None,
                "reference_probability": scored[sample].reference_probability if scored else None,
                "response_tokens": len(response.token_ids),
                "finish_reason": response.finish_reason,
            }
            for group, scored in mine
            for sample, response in enumerate(group.responses)
        ]
        return [np.frombuffer(json.dumps([rows, self.graders.failures - before]).encode(), dtype=np.uint8)]

    def _store(self, answers: Answers, of_ranks: Sequence[Sequence[Array]]) -> None:
        """Ask the judge about a piece and write it. For the first rank: the judge has one limit and one memory."""
        graded = [json.loads(packed.tobytes()) for (packed,) in of_ranks]
        rows = [row for of_rank, _ in graded for row in of_rank]
        failures: Failures = {"graders": sum((Counter(failed) for _, failed in graded), Counter())}
        if self.judge is not None:
            before = self.judge.failures.copy()
            texts = ((row[text] for text in ("data_source", "prompt", "response", "reference_answer")) for row in rows)
            tasks = [self.tasks.of_texts(*of_row) for of_row in texts]
            results = [
                GradeResult(row["accuracy"], row["format"], row["extracted_answer"], row["no_verdict"]) for row in rows
            ]
            rows = [
                row | _verdict(judged) for row, judged in zip(rows, self.judge.judge_many(tasks, results), strict=True)
            ]
            failures["judge"] = self.judge.failures - before
        answers.add(rows, failures)

    def _result(self, one: ValidationSet, strategy: str, answers: Answers) -> ValidationResult:
        rows, failures = answers.complete()
        self._report(failures, len(rows))
        judge: dict[str, float] = {}
        if self.judge is not None:
            turned = sum(row["graded_by"] == "judge" for row in rows)
            failed = failures.get("judge", Counter[str]())
            judge = {"judge_turned": turned / len(rows), "judge_failures": float(failed.total())}
            judge |= {f"judge_failures/{kind.replace(' ', '_')}": float(count) for kind, count in failed.items()}
        return ValidationResult.of_rows(one.name, strategy, rows, judge)

    def _report(self, failures: Failures, responses: int) -> None:
        for who, failed in failures.items():
            if failed:
                reasons = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
                total = f"{failed.total()} of {responses} responses"
                self.console.message(f"the {who} failed to judge {total}: {reasons}")


def _verdict(result: GradeResult) -> dict[str, Any]:
    """What graders and judge say of an answer, as the columns of `answers.SCHEMA`."""
    return {
        "accuracy": result.accuracy,
        "extracted_answer": result.extracted,
        "graded_by": "judge" if result.judged_right else "rule",
        "no_verdict": result.reason,
        "judge_reply": result.judge_reply,
    }
