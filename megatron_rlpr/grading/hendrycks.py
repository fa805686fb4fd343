r"""MATH with its own string equivalence (data sources lighteval/MATH and DigitalLearningGmbH/MATH-lighteval)."""

from __future__ import annotations

from megatron_rlpr.grading.answer_text import closing_bracket, last_section
from megatron_rlpr.grading.math_normalize import Unnormalisable, strict_latex_form
from megatron_rlpr.grading.result import Verdict


def grade_hendrycks(response_text: str, reference_answer: str) -> Verdict:
    r"""Right if what the last \boxed holds equals the reference in LaTeX form; \boxed 3 reaches to the next $.

    A response without any box is taken by its last answer section, which prompts may ask for instead.
    """
    answer = _marked_answer(response_text)
    return Verdict(answer is not None and equivalent(answer, reference_answer), answer or "")


def equivalent(first: str, second: str) -> bool:
    """Equality of the LaTeX forms, or of the texts when one of them has none."""
    try:
        return strict_latex_form(first) == strict_latex_form(second)
    except Unnormalisable:
        return first == second


def _marked_answer(text: str) -> str | None:
    if "\\boxed" not in text:
        answer = last_section(text, "<answer>", "</answer>")
        return None if answer is None else answer.strip()
    if "\\boxed " in text:
        return text.rsplit("\\boxed ", 1)[1].split("$")[0]
    start = text.rfind("\\boxed{")
    if start < 0 or start != text.rfind("\\boxed"):
        return None
    start += len("\\boxed{")
    stop = closing_bracket(text, start, 1)
    return text[start:stop] if stop >= 0 else None
