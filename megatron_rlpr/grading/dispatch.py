"""Which grader answers for which data source (spec section 6.2), and grading one response.

A data source is looked up by the first entry of GRADERS that fits: by its whole name, by its start, or by a part of its
name (validation files are called like "Math-500_Avg2").
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from megatron_rlpr.grading.exact import grade_exact
from megatron_rlpr.grading.gsm8k import grade_gsm8k
from megatron_rlpr.grading.hendrycks import grade_hendrycks
from megatron_rlpr.grading.multiple_choice import grade_multiple_choice
from megatron_rlpr.grading.prime_math import grade_in_training, grade_in_validation
from megatron_rlpr.grading.result import GradeResult, GradeTask, Phase, Verdict
from megatron_rlpr.reward.format import rule_format_score
from megatron_rlpr.types import UserError


@dataclass(frozen=True)
class Grader:
    """One grader family and the data sources it answers for.

    names: whole data source names; prefixes, parts: starts and substrings of them.
    may_be_slow: the time it takes is not bounded by the length of the response, so it runs under a time limit.
    """

    grade: Callable[[GradeTask], Verdict]
    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    may_be_slow: bool = True

    def fits(self, data_source: str) -> bool:
        """True when this grader answers for the data source."""
        return (
            data_source in self.names
            or data_source.startswith(self.prefixes)
            or any(part in data_source for part in self.parts)
        )


def _exact(task: GradeTask) -> Verdict:
    return grade_exact(task.response_text, task.reference_answer)


def _gsm8k(task: GradeTask) -> Verdict:
    return grade_gsm8k(task.response_text, task.reference_answer)


def _hendrycks(task: GradeTask) -> Verdict:
    return grade_hendrycks(task.response_text, task.reference_answer)


def _choice_of_16(task: GradeTask) -> Verdict:
    return grade_multiple_choice(task.response_text, task.reference_answer, "ABCDEFGHIJKLMNOP", task.prompt_text)


def _choice_of_4(task: GradeTask) -> Verdict:
    return grade_multiple_choice(task.response_text, task.reference_answer, "ABCD", task.prompt_text)


def _mathematics(task: GradeTask) -> Verdict:
    grade_mathematics = grade_in_training if task.phase == "train" else grade_in_validation
    return grade_mathematics(task.response_text, task.reference_answer)


_TULU = "allenai-tulu-3-sft-mixture-train-"
_TULU_PARTS = (
    "tulu_v3.9_wildchat_100k", "personahub_ifdata_manual_seed_v3_29980", "flan_v2_converted", "no_robots_converted",
    "tulu_v3.9_sciriff_10k", "tulu_v3.9_table_gpt_5k", "oasst1_converted",
)  # fmt: skip
_MATHEMATICS = (
    "numina_cn_k12", "numina_synthetic_math", "numina_olympiads", "numina_synthetic_amc", "numina_aops_forum",
    "numina_amc_aime", "Math-500", "AIME2024", "AMC2023", "DAPO-Math-17k", "WebInstruct-verified",
    "orz_math_57k_collection", "MATH", "OlympiadBench", "Minerva", "TheoremQA", "simplelr_deepscaler",
    *(_TULU + part for part in _TULU_PARTS),
)  # fmt: skip

GRADERS = (
    Grader(_exact, prefixes=("quickstart/",), may_be_slow=False),
    Grader(_gsm8k, names=("openai/gsm8k",), may_be_slow=False),
    Grader(_hendrycks, names=("lighteval/MATH", "DigitalLearningGmbH/MATH-lighteval"), may_be_slow=False),
    Grader(_choice_of_16, parts=("MMLUPro", "SuperGPQA")),
    Grader(_choice_of_4, parts=("gpqa_diamond", "HellaSwag", "WebInstruct-verified-val")),
    Grader(_mathematics, parts=_MATHEMATICS),
)
CODE_SOURCES = ("codecontests", "apps", "codeforces", "taco")


def grade(
    data_source: str, response_text: str, reference_answer: str, prompt_text: str, phase: Phase, format_mode: str = "R1"
) -> GradeResult:
    """Grade one response in this process, without a time limit (see `pool.GraderPool`). Raises UserError for an unknown
    data source."""
    return grade_task(GradeTask(data_source, response_text, reference_answer, prompt_text, phase, format_mode))


def grade_task(task: GradeTask) -> GradeResult:
    """As `grade`."""
    verdict = grader_of(task.data_source).grade(task)
    return GradeResult(float(verdict.correct), _format(task), verdict.extracted)


def without_verdict(task: GradeTask, reason: str) -> GradeResult:
    """A response that could not be graded: wrong, for the stated reason; its format still counts."""
    return GradeResult(0.0, _format(task), "", reason)


def grader_of(data_source: str) -> Grader:
    """The grader of a data source. Raises UserError that names the nearest known sources when there is none."""
    for grader in GRADERS:
        if grader.fits(data_source):
            return grader
    if data_source in CODE_SOURCES:
        raise UserError(
            f"data_source {data_source!r} needs responses to be run as programs, which the graders never do; leave it "
            "out"
        )
    known = [
        name for grader in GRADERS for name in grader.names + tuple(f"{p}*" for p in grader.prefixes) + grader.parts
    ]
    near = difflib.get_close_matches(data_source, known, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise UserError(
        f"data_source {data_source!r} has no grader{hint} Known sources (or parts of their names): {', '.join(known)}"
    )


def _format(task: GradeTask) -> float:
    return rule_format_score(task.response_text, task.prompt_text, task.format_mode)
