"""Write the quickstart's questions as train.parquet and val.parquet in the reference's schema.

Ten families of short questions, equally many of each, families taking turns. Held-out questions ask for facts that no
training question asks for, whatever the seeds. The same arguments give the same rows, in a complete folder or none.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from megatron_rlpr.system.sealed_folder import empty, make_once
from megatron_rlpr.types import UserError
from tools.quickstart_prompt import EXAMPLES, messages
from tools.quickstart_tasks import TASKS, Question, is_held_out

# Part of what an output was made from: raise it when the same arguments would give other rows.
GENERATOR = 1
SPLITS = ("train", "val")


@cache
def questions_of(split: str) -> tuple[tuple[Question, ...], ...]:
    """All questions of a split ("train" or "val"), one tuple a family, in the order of TASKS."""
    held_out = split == "val"
    return tuple(
        tuple(question for question in task.enumerate() if is_held_out(question.fact) == held_out) for task in TASKS
    )


def draw(split: str, count: int, seed: int) -> list[Question]:
    """`count` different questions of a split, the families taking turns; raises UserError when there are too few."""
    wanted = [count // len(TASKS) + (position < count % len(TASKS)) for position in range(len(TASKS))]
    pools = questions_of(split)
    if any(number > len(pool) for number, pool in zip(wanted, pools, strict=True)):
        fewest, task = min((len(pool), task.name) for pool, task in zip(pools, TASKS, strict=True))
        most = f"ask for at most {fewest * len(TASKS)} in all"
        raise UserError(f"--{split} {count}: {task} has only {fewest} different questions; {most}")
    columns = [
        random.Random(f"{seed} {split} {task.name}").sample(pool, number)
        for task, pool, number in zip(TASKS, pools, wanted, strict=True)
    ]
    return [column[turn] for turn in range(max(wanted)) for column in columns if turn < len(column)]


def assert_disjoint(train: Sequence[Question], val: Sequence[Question]) -> None:
    """Fail if a text or a fact of one split occurs in the other, a text twice, or a worked example in either."""
    texts = Counter(question.text for question in (*train, *val))
    faults = {
        "questions asked more than once": [text for text, times in texts.items() if times > 1],
        "facts in both train and held-out": {question.fact for question in train} & {question.fact for question in val},
        "worked examples that are also asked": [asked for asked, _ in EXAMPLES if asked in texts],
    }
    for fault, found in faults.items():
        if found:
            raise AssertionError(f"{fault}: {sorted(found)[:3]}")


def row(question: Question, index: int, split: str) -> dict[str, Any]:
    """One record in the reference's schema."""
    return {
        "data_source": f"quickstart/{question.task}",
        "prompt": messages(question.text),
        "ability": question.ability,
        "reward_model": {"ground_truth": question.answer, "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }


def prepare(out: Path, train: int, val: int, seed: int) -> bool:
    """Make `out` hold train.parquet and val.parquet; False when it did. Raises UserError for impossible sizes."""
    for split, count in zip(SPLITS, (train, val), strict=True):
        if count < 1:
            raise UserError(f"--{split} {count}: expected at least 1 question")

    def build(staging: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        questions = {"train": draw("train", train, seed), "val": draw("val", val, seed)}
        assert_disjoint(questions["train"], questions["val"])
        empty(staging)
        for split in SPLITS:
            rows = [row(question, index, split) for index, question in enumerate(questions[split])]
            pq.write_table(pa.Table.from_pylist(rows), staging / f"{split}.parquet")

    return make_once(out, {"train": train, "val": val, "seed": seed, "generator": GENERATOR}, build)


def summary(out: Path) -> str:
    """Questions per family and split, and one example of each, as text for the console."""
    import pyarrow.parquet as pq

    tables = {split: pq.read_table(out / f"{split}.parquet").to_pylist() for split in SPLITS}
    counts = {split: Counter(record["data_source"] for record in records) for split, records in tables.items()}
    examples = {record["data_source"]: record for record in tables["val"]}
    lines = [f"{'family':<24}{'train':>6}{'val':>6}  a held-out question"]
    for source in sorted(counts["train"] | counts["val"]):
        example = examples.get(source)
        shown = f"{example['prompt'][-1]['content']} -> {example['reward_model']['ground_truth']}" if example else ""
        lines.append(f"{source:<24}{counts['train'][source]:>6}{counts['val'][source]:>6}  {shown}")
    return "\n".join(lines)
