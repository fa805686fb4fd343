"""The chat turns in front of every quickstart question.

A 135M model writes the tags only after it has seen them used: with no examples, or one, its format rate is 0 and no
group has any variance; with four worked turns it starts between 0.2 and 1.0. The tags carry no spaces or newlines, the
reasoning is one sentence.
"""

from __future__ import annotations

SYSTEM = "Answer the question. Write short reasoning in <think> tags, then the final answer in <answer> tags."


def worked(reasoning: str, answer: str) -> str:
    """An answer in the form that the format reward asks for."""
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


EXAMPLES = (
    (
        "Kim has 6 balloons and loses 2. How many balloons are left?",
        worked("Kim starts with 6 balloons and loses 2. 6 - 2 = 4.", "4"),
    ),
    ("What is the capital of Norway?", worked("The capital of Norway is Oslo.", "Oslo")),
    ("What is 13 + 5?", worked("13 + 5 = 18.", "18")),
    (
        "Which is longer, a river or a street?",
        worked("A river can cross whole countries, so a river is longer than a street.", "river"),
    ),
)


def messages(question: str) -> list[dict[str, str]]:
    """System line, the worked examples as user and assistant turns, and the question."""
    turns = [{"role": "system", "content": SYSTEM}]
    for asked, answered in EXAMPLES:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*turns, {"role": "user", "content": question}]
