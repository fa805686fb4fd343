"""What a grader is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Phase = Literal["train", "validation"]


@dataclass(frozen=True)
class GradeTask:
    """One response to grade.

    response_text: the decoded response, without special tokens.
    prompt_text: the decoded prompt; multiple choice reads its options and the format score its instructions.
    phase: the mathematics graders are stricter about where the answer stands in "train".
    format_mode: tags the format score wants, as `reward.format_mode` ("R1" or "R1_nothink").
    """

    data_source: str
    response_text: str
    reference_answer: str
    prompt_text: str = ""
    phase: Phase = "validation"
    format_mode: str = "R1"

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise ValueError(f"phase {self.phase!r}: expected one of {get_args(Phase)}")


@dataclass(frozen=True)
class GradeResult:
    """The verdict on one response.

    accuracy and format are 0.0 or 1.0; extracted is the answer the grader read; reason says why the rules reached no
    verdict, "" normally.
    judged_right: a judge turned wrong into right; judge_reply: what the judge wrote, "" when it was not asked or did
    not answer.
    """

    accuracy: float
    format: float
    extracted: str
    reason: str = ""
    judged_right: bool = False
    judge_reply: str = ""


class Verdict(NamedTuple):
    """What one grader family answers: is it right, and which text did it take for the answer."""

    correct: bool
    extracted: str
