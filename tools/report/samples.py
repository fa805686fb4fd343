"""Which of a run's stored responses the page shows, with everything that was said about them.

All of them where they are few enough. Otherwise steps at even distances and, in each, whole groups drawn at random, so
that the responses to one prompt can be compared. The draw depends on the step alone: the same page every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from megatron_rlpr.rollout.store import read_table, stored_steps
from megatron_rlpr.system.quoting import reason
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.types import UserError
from tools.report.run_record import RunRecord

ROWS_A_STEP = 32
"""Responses of a step that are shown when not all steps can be: some groups."""
NUMBERS = ("reward", "reference_probability", "base_probability", "format", "repetition", "accuracy", "advantage")
TEXTS = ("prompt", "response", "reference_answer", "extracted_answer", "data_source", "finish_reason")
_COLUMNS = (
    *("step", "group", "prompt_index", "sample", "splice_valid", "kept", "response_tokens", "messages"),
    *("reference_tokens", "reference_log_probs"),
    *NUMBERS,
    *TEXTS,
)


class Samples(NamedTuple):
    """rows: as stored, in order. note: what was chosen, in words."""

    rows: list[dict[str, Any]]
    note: str


def choose(run: RunRecord, most_rows: int, most_characters: int) -> Samples:
    """About so many rows and characters of the run's responses: a group is taken wholly or not at all, and of every
    chosen step at least one. Steps that cannot be read become notes of the run.
    """
    folder = run.folder.rollouts
    if not folder.is_dir():
        return Samples([], f"{folder.name} is not there: no responses to show (tracking.save_rollouts=false?)")
    sizes = {}
    for step in stored_steps(folder):
        path = StepFolders(folder, ".parquet").path(step)
        try:
            sizes[step] = pq.read_metadata(path).num_rows
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            run.notes.append(f"{path.name} cannot be read ({reason(error)}): its responses are not shown")
    total, steps = sum(sizes.values()), list(sizes)
    if total > most_rows:
        number = min(len(steps), max(1, most_rows // ROWS_A_STEP))
        steps = [steps[place] for place in np.linspace(0, len(steps) - 1, number).round().astype(int)]
    rows: list[dict[str, Any]] = []
    characters = 0
    for place, step in enumerate(steps):
        left = len(steps) - place
        most = total if total <= most_rows else (most_rows - len(rows)) // left
        try:
            taken, length = _of_step(run, step, most, (most_characters - characters) // left)
        except UserError as error:
            run.notes.append(str(error))
            continue
        rows += taken
        characters += length
    if len(rows) == total:
        return Samples(rows, f"all {total:,} stored responses of {len(sizes)} steps")
    used = len({row["step"] for row in rows})
    drawn = f"{len(rows):,} of {total:,} stored responses, whole groups drawn at random"
    return Samples(rows, f"a sample: {drawn} from {used} of {len(sizes)} steps")


def _of_step(run: RunRecord, step: int, most_rows: int, most_characters: int) -> tuple[list[dict[str, Any]], int]:
    """(rows, characters) of groups of the step, drawn while they fit; the first one always does."""
    table = read_table(run.folder.rollouts, step, _COLUMNS)
    numbers = table["group"].to_numpy()
    texts = (table[name].to_pylist() for name in ("prompt", "response"))
    lengths = np.array([len(prompt) + len(response) for prompt, response in zip(*texts, strict=True)])
    rows = characters = 0
    chosen: list[int] = []
    for group in np.random.default_rng(step).permutation(np.unique(numbers)):
        here = numbers == group
        size, length = int(here.sum()), int(lengths[here].sum())
        if not chosen or (rows + size <= most_rows and characters + length <= most_characters):
            chosen.append(group)
            rows, characters = rows + size, characters + length
    return table.filter(np.isin(numbers, chosen)).to_pylist(), characters
