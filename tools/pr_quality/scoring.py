"""Labelled responses -> what the policy and the rules say about each. All ranks call it together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from megatron_rlpr.actor import fp8, parallel
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.sources import grader_of
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.grading.multiple_choice import LETTERS
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.result import GradeTask
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.run.build import policy
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.system.process_environment import default_threads
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import DoubleArray, ScoreRequest, UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from tools.labelled_responses import LabelledGroups, LabelledRow, labelled_groups
from tools.pr_quality.measures import RULE_GRADE, lengths, measures

_CHOICE, _FREE = "MMLUPro", "WebInstruct-verified"
"""Whose grader reads a response to a question with options, and one without, where its line names no data_source."""


@dataclass(frozen=True)
class Scored:
    """rows: those that could be scored, in the file's order of questions. measures: [rows] each.

    longer: lines left out because they have too many tokens; unplaced: because no reference answer can stand in them.
    """

    rows: tuple[LabelledRow, ...]
    measures: dict[str, DoubleArray]
    longer: int
    unplaced: int


def score(config: Config, read: Sequence[LabelledRow], file: Path, length_control: bool, console: Console) -> Scored:
    """Start the process groups, build the policy and score every response.

    read: the file's rows, on the first rank (others may know none). Raises UserError where nothing can be scored.
    """
    layout = parallel.initialize(config.actor, config.trainer.seed, config.trainer.collective_timeout_s)
    torch.set_num_threads(config.trainer.threads_per_rank or default_threads())
    config = replace(config, actor=fp8.resolved(config.actor))
    rows = first_rank_decides(lambda: list(read))
    shape = model_shape(HfFolder(config.model.path).config())
    longest = min(shape.max_position_embeddings, config.actor.max_tokens_per_micro_batch)
    tokenizer = load_tokenizer(config.model.path)
    labelled = labelled_groups(tokenizer, rows, file, longest)
    # Whatever is left of the sequence may be reference answer.
    manager = RewardManager(
        config.reward, tokenizer, max_prompt_length=longest // 2, max_response_length=-(-longest // 2)
    )
    spliced, base = _requests(labelled, manager, longest)
    usable = [request is not None and prompt is not None for request, prompt in zip(spliced, base, strict=True)]
    if not any(usable):
        raise UserError(f"{file}: the reference answer can be put into none of its responses")
    kept = tuple(compress(labelled.rows, usable))
    asked = [request for request in [*compress(spliced, usable), *compress(base, usable)] if request is not None]
    console.message(
        f"{len(kept)} responses to {len({row.question for row in kept})} questions on {layout.world_size} ranks"
    )
    actor = policy(shape, config, layout, trainable=False)
    with console.phase("score") as progress:
        log_probs = [scores.log_probs for scores in actor.score(asked, progress.advance)]
    if not all(np.isfinite(values).all() for values in log_probs):
        raise UserError(f"model.path={config.model.path} gives log-probs that are no numbers: set actor.dtype=float32")
    found = measures(log_probs[: len(kept)], log_probs[len(kept) :])
    grades, failures = first_rank_decides(lambda: _grades(kept))
    found[RULE_GRADE] = np.array(grades)
    for cause, count in failures.items():
        console.message(f"{count} responses got no grade and count as wrong: {cause}")
    if length_control:
        tokens = [len(response.token_ids) for group in labelled.groups for response in group.responses]
        found |= lengths(log_probs[: len(kept)], list(compress(tokens, usable)))
    return Scored(kept, found, labelled.longer, len(usable) - len(kept))


def _requests(
    labelled: LabelledGroups, manager: RewardManager, longest: int
) -> tuple[list[ScoreRequest | None], list[ScoreRequest | None]]:
    """The reference answer behind the reasoning, and with none: one of each a response, None where it is too long."""
    spliced = [request for requests in manager.reference_requests(labelled.groups) for request in requests]
    base = manager.base_requests([group.prompt for group in labelled.groups])
    fitting = [request if len(request.token_ids) <= longest else None for request in base]
    per_response = [request for request, group in zip(fitting, labelled.groups, strict=True) for _ in group.responses]
    return spliced, per_response


def _grades(rows: Sequence[LabelledRow]) -> tuple[list[float], dict[str, int]]:
    """The rules' grade of each response as it was written, and how many got none for which cause."""
    with closing(GraderPool()) as graders:
        results = graders.grade_many([grade_task(row) for row in rows])
        return [result.accuracy for result in results], dict(graders.failures)


def grade_task(row: LabelledRow) -> GradeTask:
    """What the rules are asked about a response: of the right letter where the reference is one of the options."""
    options = row.options if row.reference in row.options[: len(LETTERS)] else ()
    listed = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    reference = LETTERS[options.index(row.reference)] if options else row.reference
    asked = f"{row.question}\nOptions:\n{listed}" if options else row.question
    return GradeTask(row.data_source or (_CHOICE if options else _FREE), row.response, reference, asked)


def check_sources(rows: Sequence[LabelledRow], file: Path) -> None:
    """Raise UserError for the first row whose data_source nobody grades."""
    for row in rows:
        try:
            grader_of(grade_task(row).data_source)
        except UserError as error:
            raise UserError(f"{file}, line {row.line}: {error}") from error
