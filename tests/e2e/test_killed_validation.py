"""A validation that is killed goes on where it stopped, and ends as if undisturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_runs import Workplace

pytestmark = pytest.mark.e2e

PER_PIECE = 2
NAME = "killed_validation"
ARGUMENTS = ("+trainer.val_only=True", f"evaluation.prompts_per_piece={PER_PIECE}")


def pieces(workplace: Workplace) -> list[Path]:
    return sorted((workplace.run_folder(NAME) / "validation" / "step_000000").glob(".val.greedy.*/from_*.parquet"))


def test_no_finished_prompt_is_answered_again_and_the_table_is_the_same(workplace: Workplace, undisturbed: str) -> None:
    """The training that nothing happened to has validated the same weights. A mark in what was stored before the kill
    is still there afterwards."""
    status, _ = workplace.start_warm(NAME, 0, *ARGUMENTS, kill_when=lambda: len(pieces(workplace)) > 1)
    assert status < 0, "it was killed"
    stored = pieces(workplace)
    for piece in stored:
        table = pq.read_table(piece)
        marks = pa.array(["from before the kill"] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index("judge_reply"), "judge_reply", marks), piece)
    output = workplace.train(NAME, 0, *ARGUMENTS)
    assert f"{len(stored) * PER_PIECE} of 16 prompts are answered already" in output
    assert "Accuracy after step 0, mean [95% interval]" in output
    folders = [workplace.run_folder(name) / "validation" / "step_000000" for name in (NAME, undisturbed)]
    mine, whole = (pd.read_parquet(folder / "val.greedy.parquet") for folder in folders)
    assert (mine.judge_reply == "from before the kill").sum() == len(stored) * PER_PIECE
    assert len(pd.read_csv(folders[0] / "val.greedy.csv")) == len(mine) == 16
    exact = ["prompt_row", "response", "extracted_answer", "accuracy", "format", "graded_by", "finish_reason"]
    pd.testing.assert_frame_equal(mine[exact], whole[exact])
    pd.testing.assert_frame_equal(mine[["reward"]], whole[["reward"]], atol=1e-5)
    (accuracies, expected) = (json.loads((folder / "accuracies.json").read_text()) for folder in folders)
    assert accuracies == expected
    assert f"{expected[0]['accuracy']:.3f} [{expected[0]['low']:.3f}, {expected[0]['high']:.3f}]" in output
    assert not pieces(workplace)
