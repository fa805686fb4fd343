"""Judge the policy on held-out prompts: generate, score, grade, and report one value per prompt and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.distributed as dist

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.grading.format import format_score
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import Prompt, RolloutGroup

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
    same
    prompts can be compared pairwise. judge: what the judge did, by metric name; empty without one.
    """

    name: str
    strategy: str
    per_prompt: dict[str, list[float]]
    response_length: float
    judge: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat names for the trackers: val/<set>/<strategy>/<measure>."""
        prefix = f"val/{self.name}/{self.strategy}"
        means = {f"{prefix}/{measure}": float(np.mean(values)) for measure, values in self.per_prompt.items()}
        judge = {f"{prefix}/{name}": value for name, value in self.judge.items()}
        return {**means, f"{prefix}/response_length": self.response_length, **judge}


class HeldOutEvaluation:
    """Runs every configured strategy on every validation set. All ranks call it together; the first one grades."""

    def __init__(
        self,
        config: Config,
        rollouts: Rollouts,
        scorer: GroupScorer,
        graders: GraderPool,
        console: Console,
        tasks: GradeTasks,
        judge: Judge | None = None,
    ) -> None:
        self._config = config
        self._rollouts = rollouts
        self._scorer = scorer
        self._graders = graders
        self._console = console
        self._tasks = tasks
        self._judge = judge

    def run(self, sets: Sequence[ValidationSet]) -> list[ValidationResult]:
        """Results in the order of the sets, then of evaluation.strategies."""
        return [self._validate(one, strategy) for one in sets for strategy in self._config.evaluation.strategies]

    def _validate(self, one: ValidationSet, strategy: str) -> ValidationResult:
        groups = self._generate(one, strategy)
        per_prompt: dict[str, list[float]] = {}
        if self._config.evaluation.score_reward:
            with self._console.phase(f"score {one.name}") as progress:
                scored = self._scorer.score(groups, one.prompt_set, progress.advance)
            for measure in ("reward", "reference_probability"):
                per_prompt[measure] = [float(np.mean([getattr(r, measure) for r in group.rewards])) for group in scored]
        mode = self._config.reward.format_mode
        per_prompt["format"] = [
            float(np.mean([format_score(r.text, mode) for r in group.responses])) for group in groups
        ]
        per_prompt["accuracy"], judge = self._grade(groups)
        lengths = [len(r.token_ids) for group in groups for r in group.responses]
        return ValidationResult(one.name, strategy, per_prompt, float(np.mean(lengths)), judge)

    def _generate(self, one: ValidationSet, strategy: str) -> list[RolloutGroup]:
        settings = self._config.evaluation
        greedy = strategy == "greedy"
        samples = 1 if greedy else settings.n or one.samples_per_prompt
        sampling = SamplingSettings(
            temperature=0.0 if greedy else settings.temperature or self._config.rollout.temperature,
            top_p=1.0 if greedy else settings.top_p,
            max_tokens=self._config.data.max_response_length,
        )
        prompts: tuple[Prompt, ...] = one.prompts.prompts
        with self._console.phase(f"answer {one.name}", total=len(prompts) * samples) as progress:
            asked = RolloutRequest(prompts, samples, VALIDATION_STEP, settings.seed, sampling)
            return self._rollouts.generate(asked, lambda tokens, done, _: progress.update(done, tokens))

    def _grade(self, groups: Sequence[RolloutGroup]) -> tuple[list[float], dict[str, float]]:
        """Mean accuracy of every group's responses, graded on the first rank, and what the judge did."""
        answer: list[tuple[list[float], dict[str, float]] | None] = [None]
        if dist.get_rank() == 0:
            tasks = [self._tasks.task(group.prompt, r, "validation") for group in groups for r in group.responses]
            results, judge = self._second_opinion(tasks, self._graders.grade_many(tasks))
            verdicts = iter(results)
            answer = [([float(np.mean([next(verdicts).accuracy for _ in group.responses])) for group in groups], judge)]
        dist.broadcast_object_list(answer, src=0)
        assert answer[0] is not None
        return answer[0]

    def _second_opinion(
        self, tasks: Sequence[GradeTask], results: list[GradeResult]
    ) -> tuple[list[GradeResult], dict[str, float]]:
        """The judge's verdicts, where there is a judge, and its metrics. What it failed to judge keeps the verdict of
        the rules."""
        if self._judge is None:
            return results, {}
        before = self._judge.failures.copy()
        results = self._judge.judge_many(tasks, results)
        failed = self._judge.failures - before
        turned = sum(result.judged_right for result in results)
        if failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
            self._console.message(f"the judge failed to judge {failed.total()} of {len(results)} responses: {reasons}")
        return results, {"judge_turned": turned / len(results), "judge_failures": float(failed.total())}
