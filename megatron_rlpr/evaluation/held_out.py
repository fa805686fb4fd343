"""Judge the policy on held-out prompts: generate, score, grade, and report one value per prompt and measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.validation_metrics import reference_metrics
from megatron_rlpr.grading.format import format_score
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import RolloutGroup

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
    empty without one.
    """

    name: str
    strategy: str
    per_prompt: dict[str, list[float]]
    response_length: float
    data_sources: tuple[str, ...] = ()
    judge: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat names for the trackers: val/<set>/<strategy>/<measure>."""
        prefix = f"val/{self.name}/{self.strategy}"
        means = {measure: float(np.mean(values)) for measure, values in self.per_prompt.items()}
        named = {**means, "response_length": self.response_length, **self.judge}
        return {f"{prefix}/{name}": value for name, value in named.items()}


def validation_metrics(results: Sequence[ValidationResult]) -> dict[str, float]:
    """All metrics of one validation: those of every result, and the accuracies per data source and their means."""
    metrics = {name: value for result in results for name, value in result.metrics().items()}
    accuracies: dict[str, dict[str, list[float]]] = {}
    for result in results:
        sources = accuracies.setdefault(result.strategy, {})
        for source, accuracy in zip(result.data_sources, result.per_prompt["accuracy"], strict=True):
            sources.setdefault(source, []).append(accuracy)
    return metrics | reference_metrics(accuracies)


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Runs every configured strategy on every validation set. All ranks call it together; the first one grades."""

    config: Config
    rollouts: Rollouts
    scorer: GroupScorer
    graders: GraderPool
    console: Console
    tasks: GradeTasks
    judge: Judge | None = None

    def run(self, sets: Sequence[ValidationSet]) -> list[ValidationResult]:
        """Results in the order of the sets, then of evaluation.strategies."""
        return [self._validate(one, strategy) for one in sets for strategy in self.config.evaluation.strategies]

    def _validate(self, one: ValidationSet, strategy: str) -> ValidationResult:
        groups = self._generate(one, strategy)
        per_prompt: dict[str, list[float]] = {}
        mode = self.config.reward.format_mode
        if self.config.evaluation.score_reward:
            with self.console.phase(f"score {one.name}") as progress:
                scored = self.scorer.score(groups, one.prompt_set, progress.advance)
            for measure in ("reward", "reference_probability"):
                per_prompt[measure] = [float(np.mean([getattr(r, measure) for r in group.rewards])) for group in scored]
        per_prompt["format"] = [float(np.mean([format_score(r.text, mode) for r in g.responses])) for g in groups]
        per_prompt["accuracy"], judge = first_rank_decides(lambda: self._grade(groups))
        lengths = [len(r.token_ids) for group in groups for r in group.responses]
        sources = tuple(prompt.data_source for prompt in one.prompts.prompts)
        return ValidationResult(one.name, strategy, per_prompt, float(np.mean(lengths)), sources, judge)

    def _generate(self, one: ValidationSet, strategy: str) -> list[RolloutGroup]:
        settings = self.config.evaluation
        greedy = strategy == "greedy"
        samples = 1 if greedy else settings.n or one.samples_per_prompt
        sampling = SamplingSettings(
            temperature=0.0 if greedy else settings.temperature or self.config.rollout.temperature,
            top_p=1.0 if greedy else settings.top_p,
            max_tokens=self.config.data.max_response_length,
        )
        prompts = one.prompts.prompts
        with self.console.phase(f"answer {one.name}", total=len(prompts) * samples) as progress:
            asked = RolloutRequest(prompts, samples, VALIDATION_STEP, settings.seed, sampling)
            return self.rollouts.generate(asked, progress.generated)

    def _grade(self, groups: Sequence[RolloutGroup]) -> tuple[list[float], dict[str, float]]:
        """Mean accuracy of every group's responses, and what the judge did: both depend on time."""
        tasks = [self.tasks.task(group.prompt, r, "validation") for group in groups for r in group.responses]
        before = self.graders.failures.copy()
        results = self.graders.grade_many(tasks)
        self._report("the graders", self.graders.failures - before, len(tasks))
        results, judge = self._second_opinion(tasks, results)
        verdicts = iter(results)
        return [float(np.mean([next(verdicts).accuracy for _ in group.responses])) for group in groups], judge

    def _second_opinion(
        self, tasks: Sequence[GradeTask], results: list[GradeResult]
    ) -> tuple[list[GradeResult], dict[str, float]]:
        """The judge's verdicts and its metrics, where there is one; what it fails to judge keeps the rules' verdict."""
        if self.judge is None:
            return results, {}
        before = self.judge.failures.copy()
        results = self.judge.judge_many(tasks, results)
        failed = self.judge.failures - before
        turned = sum(result.judged_right for result in results)
        self._report("the judge", failed, len(tasks))
        return results, {"judge_turned": turned / len(results), "judge_failures": float(failed.total())}

    def _report(self, who: str, failed: Counter[str], responses: int) -> None:
        if failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
            self.console.message(f"{who} failed to judge {failed.total()} of {responses} responses: {reasons}")
