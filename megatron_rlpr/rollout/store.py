"""Rollouts of a training step as one parquet file a node, one row per response.

Everything that was generated is stored, groups that the filter dropped included, in the order the step made them. The
same file feeds a reader's eyes, the sample tables and `rollout.replay`. The first node's file lies in the folder itself
and says of how many nodes there are files; those of the others lie in node_1/, node_2/, ...: a reader finds them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rlpr.system.quoting import reason
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.types import Prompt, Response, RolloutGroup, ScoredGroup, UserError

_FORMAT_KEY, _FORMAT = b"megatron_rlpr.rollouts", b"3"
_NODES_KEY = b"megatron_rlpr.nodes"
_LACKING: dict[bytes | None, tuple[str, ...]] = {b"2": ("reference_tokens", "reference_log_probs")}
"""Columns that files of older formats have not; they are read as null."""
_SUFFIX = ".parquet"
_TEXTS = ("data_source", "prompt", "response", "reference_answer", "extracted_answer")
_REWARDS = ("reward", "reference_probability", "base_probability", "format", "repetition", "accuracy")
_SAMPLED = ("engine_log_probs", "finish_reason", "seed", "weight_versions")
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int64()),  # position of the rollout group in the step
        ("prompt_index", pa.int64()),
        ("sample", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.float64()) for name in _REWARDS),
        ("splice_valid", pa.bool_()),
        ("kept", pa.bool_()),  # passed the filter
        ("advantage", pa.float64()),  # null: the response was not trained on
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("weight_versions", pa.list_(pa.int64())),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("response_tokens", pa.list_(pa.int32())),
        ("engine_log_probs", pa.list_(pa.float64())),
        ("old_log_probs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
        ("messages", pa.string()),  # JSON
        ("extra", pa.string()),  # JSON
        ("reference_tokens", pa.list_(pa.string())),  # the scored ones as text; null: nothing was spliced
        ("reference_log_probs", pa.list_(pa.float32())),
    ],
    metadata={_FORMAT_KEY: _FORMAT},
)


@dataclass(frozen=True)
class Nodes:
    """Which of `count` nodes stores its part of a step."""

    number: int = 0
    count: int = 1


def write_rollouts(
    folder: str | Path,
    step: int,
    groups: Sequence[ScoredGroup],
    *,
    advantages: Sequence[Sequence[float] | None],
    kept: Sequence[bool],
    decode: Callable[[Sequence[int]], str],
    numbers: Sequence[int] | None = None,
    nodes: Nodes = Nodes(),
) -> Path:
    """Write <folder>/step_<step>.parquet in one piece (when interrupted, none or the old file); returns its path.

    advantages: per group the advantage of each response, None for a group that was not trained on.
    kept: per group, whether the filter kept it. decode: token ids -> text, special tokens kept.
    numbers: the groups' positions in the step, where these are not all of it. nodes: another than the first writes to
    a folder of its own in folder.
    """
    rows = []
    numbers = range(len(groups)) if numbers is None else numbers
    for number, scored, given, group_kept in zip(numbers, groups, advantages, kept, strict=True):
        prompt = decode(scored.group.prompt.token_ids)
        rows += _rows(step, number, scored, given, bool(group_kept), prompt, decode)
    files = StepFolders(_of_node(folder, nodes.number), _SUFFIX)
    with files.writing(step):
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        if nodes.count > 1:
            table = table.replace_schema_metadata({**SCHEMA.metadata, _NODES_KEY: str(nodes.count).encode()})
        pq.write_table(table, files.begin(step), compression="zstd", write_page_checksum=True)
        return files.finish(step)


def stored_steps(folder: str | Path) -> list[int]:
    """The steps that have a file in folder, ascending."""
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: no such folder of stored rollouts; give a run's rollouts folder, e.g. runs/<name>/rollouts"
        )
    return StepFolders(Path(folder), _SUFFIX).steps()


def forget_after(folder: str | Path, step: int) -> None:
    """Remove the files of later steps: a run that goes on after `step` makes them again, or ends before."""
    for of_node in (Path(folder), *Path(folder).glob("node_*")):
        StepFolders(of_node, _SUFFIX).forget_after(step)


def read_table(folder: str | Path, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The stored rows of a step with the columns of SCHEMA, or some; UserError when missing or of another format."""
    steps = stored_steps(folder)
    if step not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{folder}: no rollouts of step {step} are stored there; stored steps: {available}")
    first, nodes = _read_file(StepFolders(Path(folder), _SUFFIX).path(step), columns)
    if nodes == 1:
        return first
    ordered = None if columns is None else [*columns, *{"group", "sample"}.difference(columns)]
    paths = [StepFolders(_of_node(folder, number), _SUFFIX).path(step) for number in range(nodes)]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise UserError(f"{', '.join(absent)}: missing, a part of step {step} of {nodes} nodes; copy all folders of it")
    table = pa.concat_tables([_read_file(path, ordered)[0] for path in paths])
    return table.sort_by([("group", "ascending"), ("sample", "ascending")]).select(first.column_names)


def _of_node(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"node_{number}" if number else Path(folder)


def _read_file(path: Path, columns: Sequence[str] | None) -> tuple[pa.Table, int]:
    """One node's rows, and of how many nodes there are files."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            stored = {field.name: field.type for field in file.schema_arrow}
            metadata = file.schema_arrow.metadata or {}
            version, nodes = metadata.get(_FORMAT_KEY), int(metadata.get(_NODES_KEY, b"1"))
            wanted = [field for field in SCHEMA if columns is None or field.name in columns]
            table = file.read([field.name for field in wanted if field.name in stored])
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: is not a readable parquet file ({reason(error)}); write it again or remove it"
        ) from None
    absent = _LACKING.get(version, ())
    differing = [f.name for f in SCHEMA if stored.get(f.name) != (None if f.name in absent else f.type)]
    if differing or not (version == _FORMAT or absent) or len(stored) + len(absent) != len(SCHEMA):
        raise UserError(
            f"{path}: was not written by this version's rollout store (missing or different columns: "
            f"{', '.join(differing) or 'none'}); replay rollouts that this version stored"
        )
    for field in wanted:
        if field.name in absent:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.replace_schema_metadata(SCHEMA.metadata), nodes


def token_texts(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text of all; a character of several tokens stands at its last one.

    Every token is decoded behind those of the character before it, because some tokenizers drop a text's first space.
    """
    texts: list[str] = []
    start = shown = 0
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[start:end])
        if text.endswith("\ufffd") and end < len(token_ids):
            texts.append("")
        else:
            texts.append(text[len(decode(token_ids[start:shown])) :])
            start, shown = shown, end
    return texts


def read_rollouts(folder: str | Path, step: int) -> list[RolloutGroup]:
    """All rollout groups of a step, in the order they were made, equal to those that were written."""
    responses: dict[int, list[Response]] = {}
    prompts: dict[int, Prompt] = {}
    for row in read_table(folder, step).to_pylist():
        number = row["group"]
        if number not in prompts:
            prompts[number] = _prompt(row)
        responses.setdefault(number, []).append(_response(row))
    return [RolloutGroup(prompts[number], tuple(responses[number])) for number in sorted(prompts)]


def _rows(
    step: int,
    number: int,
    scored: ScoredGroup,
    advantages: Sequence[float] | None,
    kept: bool,
    prompt_text: str,
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    prompt = scored.group.prompt
    shared = {
        "step": step,
        "group": number,
        "prompt_index": prompt.index,
        "data_source": prompt.data_source,
        "prompt": prompt_text,
        "reference_answer": prompt.reference_answer,
        "prompt_tokens": prompt.token_ids,
        "messages": json.dumps(prompt.messages, ensure_ascii=False),
        "extra": json.dumps(prompt.extra, ensure_ascii=False),
        "kept": kept,
    }
    given: Sequence[float | None] = [None] * len(scored.group.responses) if advantages is None else advantages
    references = scored.references or (None,) * len(given)
    # The answers of a group are mostly the same tokens.
    texts = {ids: token_texts(ids, decode) for ids in {r.token_ids for r in references if r}}
    each = zip(scored.group.responses, scored.scores, scored.rewards, given, references, strict=True)
    return [
        {
            **shared,
            **{name: getattr(response, name) for name in ("finish_reason", "seed", "weight_versions")},
            "engine_log_probs": np.asarray(response.engine_log_probs, dtype=np.float64),
            **{name: getattr(reward, name) for name in (*_REWARDS, "splice_valid", "extracted_answer")},
            "sample": sample,
            "response": response.text,
            "response_tokens": response.token_ids,
            "old_log_probs": scores.log_probs,
            "entropies": scores.entropies,
            "advantage": advantage,
            "reference_tokens": reference and texts[reference.token_ids],
            "reference_log_probs": reference and reference.log_probs,
        }
        for sample, (response, scores, reward, advantage, reference) in enumerate(each)
    ]


def _prompt(row: dict[str, Any]) -> Prompt:
    messages, extra = json.loads(row["messages"]), json.loads(row["extra"])
    tokens, answer = tuple(row["prompt_tokens"]), row["reference_answer"]
    return Prompt(row["prompt_index"], tokens, tuple(messages), answer, row["data_source"], extra)


def _response(row: dict[str, Any]) -> Response:
    tokens, log_probs, versions = (tuple(row[n]) for n in ("response_tokens", "engine_log_probs", "weight_versions"))
    return Response(tokens, row["response"], log_probs, row["finish_reason"], row["seed"], versions)
