"""Which of the first and the last validation's results can be compared."""

from __future__ import annotations

from megatron_rlpr.evaluation.held_out import ValidationResult
from megatron_rlpr.evaluation.schedule import comparable

BEFORE = [
    {"name": "maths", "strategy": "greedy", "per_prompt": {"reward": [0.1, 0.2], "accuracy": [0.0, 1.0]}},
    {"name": "maths", "strategy": "sampling", "per_prompt": {"reward": [0.3, 0.4], "accuracy": [0.0, 1.0]}},
    {"name": "physics", "strategy": "greedy", "per_prompt": {"reward": [0.5]}},
]


def last(name: str, strategy: str, prompts: int) -> ValidationResult:
    return ValidationResult(
        name, strategy, {"reward": [1.0] * prompts, "accuracy": [1.0] * prompts}, response_length=3.0
    )


def test_results_are_paired_by_set_and_strategy_in_the_last_order() -> None:
    after = [last("physics", "greedy", 1), last("maths", "sampling", 2), last("maths", "greedy", 2)]
    assert [(first["reward"], result.name, result.strategy) for first, result in comparable(BEFORE, after)] == [
        ([0.5], "physics", "greedy"),
        ([0.3, 0.4], "maths", "sampling"),
        ([0.1, 0.2], "maths", "greedy"),
    ]


def test_new_sets_and_other_numbers_of_prompts_are_left_out() -> None:
    after = [last("maths", "greedy", 3), last("chemistry", "greedy", 2), last("maths", "sampling", 2)]
    assert [(result.name, result.strategy) for _, result in comparable(BEFORE, after)] == [("maths", "sampling")]
    assert comparable([], after) == []
