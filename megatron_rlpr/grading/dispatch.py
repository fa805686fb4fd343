"""Grade one response by the grader of its data source (`data.sources`)."""

from __future__ import annotations

from megatron_rlpr.data.sources import Grader, grader_of
from megatron_rlpr.grading.exact import grade_exact, grade_gsm8k
from megatron_rlpr.grading.format import rule_format_score
from megatron_rlpr.grading.hendrycks import grade_hendrycks
from megatron_rlpr.grading.multiple_choice import LETTERS, grade_multiple_choice
from megatron_rlpr.grading.prime_math import grade_in_training, grade_in_validation
from megatron_rlpr.grading.result import GradeResult, GradeTask, Verdict
from megatron_rlpr.system.quoting import quoted
from megatron_rlpr.types import UserError

QUICK: frozenset[Grader] = frozenset(("exact", "gsm8k", "hendrycks"))
"""Graders whose time is bounded by the length of the response; the others run under a time limit."""
_EXPECTED: dict[Grader, tuple[str, str]] = {
    "exact": ("<answer>{}</answer>", "the answer without tags"),
    "gsm8k": ("#### {}", "a bare number without commas"),
    "hendrycks": (r"\boxed{{{}}}", "an expression with balanced braces"),
}
"""Per quick grader how it expects an answer, and what a reference must be to be one."""


def grade(task: GradeTask) -> GradeResult:
    """Grade one response in this process, without a time limit (see `pool.GraderPool`). UserError: no such source."""
    verdict = _verdict(task)
    return GradeResult(float(verdict.correct), _format(task), verdict.extracted)


def check_gradable(data_source: str, reference_answer: str) -> None:
    """Raise UserError where nobody grades the source, or its grader (a quick one) calls the reference itself wrong."""
    grader = grader_of(data_source)
    if grader not in QUICK:
        return
    _, expected = _EXPECTED[grader]
    if not _verdict(GradeTask(data_source, own_answer(data_source, reference_answer), reference_answer)).correct:
        raise UserError(
            f"no response can be graded right: reward_model.ground_truth is {quoted(reference_answer)}, but "
            f"data_source {quoted(data_source)} expects {expected}"
        )


def own_answer(data_source: str, reference_answer: str) -> str:
    """A response that gives the reference answer itself, in the form that the grader of its source expects."""
    form, _ = _EXPECTED.get(grader_of(data_source), ("<answer> {} </answer>", ""))
    return form.format(reference_answer)


def _verdict(task: GradeTask) -> Verdict:
    response, answer = task.response_text, task.reference_answer
    match grader_of(task.data_source):
        case "exact":
            return grade_exact(response, answer)
        case "gsm8k":
            return grade_gsm8k(response, answer)
        case "hendrycks":
            return grade_hendrycks(response, answer)
        case "choice_of_16":
            return grade_multiple_choice(response, answer, LETTERS, task.prompt_text)
        case "choice_of_4":
            return grade_multiple_choice(response, answer, "ABCD", task.prompt_text)
        case "mathematics":
            return (grade_in_training if task.phase == "train" else grade_in_validation)(response, answer)


def without_verdict(task: GradeTask, reason: str) -> GradeResult:
    """A response that could not be graded: wrong, for the stated reason; its format still counts."""
    return GradeResult(0.0, _format(task), "", reason)


def _format(task: GradeTask) -> float:
    return rule_format_score(task.response_text, task.prompt_text, task.format_mode)
