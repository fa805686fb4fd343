"""Every data source of the reference reaches a grader with the reference's verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from corrections import correction
from golden_files import load

from megatron_rlpr.data.sources import SOURCES
from megatron_rlpr.grading.dispatch import grade
from megatron_rlpr.grading.result import GradeTask
from megatron_rlpr.types import UserError

PROGRAMS = {source.pattern for source in SOURCES if source.grader == "program"}
FILE = "grading_dispatch.json"
PROMPT = load(FILE)["prompt_str"]


def cases() -> Iterator[Any]:
    for number, case in enumerate(load(FILE)["cases"]):
        kind = "runs-code" if case["data_source"] in PROGRAMS else case["phase"]
        yield pytest.param(case, id=f"{number}-{case['data_source']}-{kind}")


@pytest.mark.parametrize("case", cases())
def test_a_response_is_graded_as_by_the_reference(case: dict[str, Any], request: pytest.FixtureRequest) -> None:
    def graded() -> Any:
        return grade(GradeTask(case["data_source"], case["solution"], case["ground_truth"], PROMPT, case["phase"]))

    if correction(FILE, request.node.callspec.id):
        if case["data_source"] in PROGRAMS:
            with pytest.raises(UserError, match="never"):
                graded()
        else:
            right = case["ground_truth"]
            answered = f"#### {right}", f"\\boxed{{{right}}}", f"<answer> {right} </answer>"
            assert graded().accuracy == float(case["solution"].endswith(answered))
    elif "error" in case:
        with pytest.raises(UserError, match=case["data_source"]):
            graded()
    else:
        expected = case["expected"]
        result = graded()
        assert (result.accuracy, result.format, result.extracted) == (
            expected["acc"],
            expected["format"],
            expected["extracted"],
        )
