"""What is stored comes back equal, and what is not a stored step is refused by name."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_rlpr.rollout.replay import ReplayRollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.store import (
    SCHEMA,
    forget_after,
    read_rollouts,
    read_table,
    stored_steps,
    token_texts,
    write_rollouts,
)
from megatron_rlpr.types import (
    Prompt,
    ReferenceScores,
    Response,
    ResponseReward,
    RolloutGroup,
    ScoredGroup,
    TokenScores,
    UserError,
)
from megatron_rlpr.weights.receiver import Announcement

BYTES = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat")

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PROBABILITIES = st.floats(-1, 1)
KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from megatron_rlpr.rollout.store import write_rollouts

def half(table, file, **options):
    Path(file).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = half
write_rollouts(sys.argv[1], 1, [], advantages=[], kept=[], decode=str)
"""


@st.composite
def responses(draw: st.DrawFn) -> Response:
    token_ids = draw(TOKENS)
    log_probs = st.lists(st.floats(max_value=0, allow_nan=False), min_size=len(token_ids), max_size=len(token_ids))
    return Response(
        token_ids=token_ids,
        text=draw(st.text()),
        engine_log_probs=tuple(draw(log_probs)),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        seed=draw(st.integers(0, 2**31 - 1)),
        weight_versions=tuple(draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=3))),
    )


@st.composite
def scored_groups(draw: st.DrawFn) -> ScoredGroup:
    prompt = Prompt(
        index=draw(st.integers(0, 2**40)),
        token_ids=draw(TOKENS),
        messages=tuple(draw(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3))),
        reference_answer=draw(st.text()),
        data_source=draw(st.text()),
        extra=draw(st.dictionaries(st.text(), JSON_VALUES, max_size=3)),
    )
    group = RolloutGroup(prompt, tuple(draw(st.lists(responses(), min_size=1, max_size=3))))
    lengths = [len(response.token_ids) for response in group.responses]
    return ScoredGroup(
        group,
        tuple(TokenScores(np.linspace(-2, 0, n, dtype=np.float32), np.ones(n, np.float32)) for n in lengths),
        tuple(
            ResponseReward(
                draw(PROBABILITIES),
                draw(PROBABILITIES),
                draw(PROBABILITIES),
                1.0,
                0.0,
                draw(st.booleans()),
                draw(st.text()),
                0.5,
            )
            for _ in lengths
        ),
    )


def one_group(index: int = 3, n: int = 2, extra: dict | None = None) -> ScoredGroup:
    prompt = Prompt(index, (5, 6), ({"role": "user", "content": "5+6?"},), "11", "sums", extra or {})
    made = tuple(
        Response((7, 8 + i), f"answer {i}", (-0.5, -0.25), "stop", seed=i, weight_versions=(3, 4)) for i in range(n)
    )
    scores = tuple(TokenScores(np.array([-0.5, -0.25], np.float32), np.array([1, 2], np.float32)) for _ in made)
    rewards = tuple(ResponseReward(0.1 * i, 0.6, 0.2, 1.0, -0.5, True, "11", 1.0) for i in range(n))
    return ScoredGroup(RolloutGroup(prompt, made), scores, rewards)


def write(
    folder: Path, step: int, groups: list[ScoredGroup], advantages: list | None = None, kept: list[bool] | None = None
) -> Path:
    return write_rollouts(
        folder,
        step,
        groups,
        advantages=advantages or [None] * len(groups),
        kept=kept or [True] * len(groups),
        decode=lambda token_ids: " ".join(map(str, token_ids)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(scored_groups(), max_size=4), st.data())
def test_every_prompt_and_response_comes_back_equal(groups: list[ScoredGroup], data: st.DataObject) -> None:
    advantages = [
        data.draw(st.none() | st.lists(st.floats(-5, 5), min_size=len(g.rewards), max_size=len(g.rewards)))
        for g in groups
    ]
    with TemporaryDirectory() as folder:
        write(Path(folder), 12, groups, advantages)
        back = read_rollouts(folder, 12)
        rows = read_table(folder, 12).to_pylist()
    assert back == [g.group for g in groups]
    assert [b.prompt.extra for b in back] == [g.group.prompt.extra for g in groups]
    flat = [a for g, given_ in zip(groups, advantages, strict=True) for a in (given_ or [None] * len(g.rewards))]
    assert [row["advantage"] for row in rows] == flat


def test_a_row_holds_everything_that_was_said_about_a_response(tmp_path: Path) -> None:
    path = write(tmp_path, 7, [one_group(), one_group(index=9)], advantages=[[-1.0, 1.0], None], kept=[True, False])
    assert path == tmp_path / "step_000007.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [(row["prompt_index"], row["group"], row["sample"], row["kept"]) for row in rows] == [
        (3, 0, 0, True),
        (3, 0, 1, True),
        (9, 1, 0, False),
        (9, 1, 1, False),
    ]
    second = rows[1]
    assert second["prompt"] == "5 6"
    assert second["response"] == "answer 1"
    assert (second["reward"], second["reference_probability"], second["base_probability"]) == (0.1, 0.6, 0.2)
    assert (second["format"], second["repetition"], second["accuracy"], second["splice_valid"]) == (
        1.0,
        -0.5,
        1.0,
        True,
    )
    assert (second["reference_answer"], second["extracted_answer"], second["data_source"]) == ("11", "11", "sums")
    assert (second["old_log_probs"], second["entropies"]) == ([-0.5, -0.25], [1.0, 2.0])
    assert (second["step"], second["seed"], second["weight_versions"], second["finish_reason"]) == (
        7,
        1,
        [3, 4],
        "stop",
    )
    assert second["messages"] == '[{"role": "user", "content": "5+6?"}]'
    assert [row["advantage"] for row in rows] == [-1.0, 1.0, None, None]


def test_one_prompt_may_have_two_groups_in_a_step(tmp_path: Path) -> None:
    write(tmp_path, 1, [one_group(n=2), one_group(n=3)])
    assert [len(group.responses) for group in read_rollouts(tmp_path, 1)] == [2, 3]


def test_a_step_is_written_in_one_piece(tmp_path: Path) -> None:
    write(tmp_path, 1, [one_group(n=2)])
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write(tmp_path, 1, [one_group(n=3), one_group(extra={"x": {1}})])
    assert [file.name for file in tmp_path.iterdir()] == ["step_000001.parquet"]
    assert len(read_rollouts(tmp_path, 1)[0].responses) == 2
    write(tmp_path, 1, [one_group(n=3)])
    assert len(read_rollouts(tmp_path, 1)[0].responses) == 3


def test_what_a_kill_left_of_a_write_goes_with_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert [file.name for file in tmp_path.iterdir()] == [".partial_step_000001.parquet"]
    assert stored_steps(tmp_path) == []
    write(tmp_path, 2, [one_group()])
    assert [file.name for file in tmp_path.iterdir()] == ["step_000002.parquet"]


def test_a_run_that_goes_on_forgets_the_steps_it_will_make_again(tmp_path: Path) -> None:
    forget_after(tmp_path / "none", 0)
    for step in (1, 2, 3, 4):
        (tmp_path / f"step_{step:06d}.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("kept")
    forget_after(tmp_path, 2)
    assert stored_steps(tmp_path) == [1, 2]
    forget_after(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_step_is_named_with_those_there_are(tmp_path: Path) -> None:
    for step in (2, 10):
        write(tmp_path, step, [one_group()])
    assert stored_steps(tmp_path) == [2, 10]
    with pytest.raises(UserError, match=r"no rollouts of step 3 are stored there; stored steps: 2, 10$") as error:
        read_rollouts(tmp_path, 3)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder of stored rollouts"):
        stored_steps(tmp_path / "nowhere")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step_000001.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "seed": ["not a number"]}), path)
    with pytest.raises(
        UserError, match=r"step_000001\.parquet: was not written by this version's rollout store .*step, group.*seed"
    ):
        read_rollouts(tmp_path, 1)
    pq.write_table(pa.Table.from_pylist([], schema=SCHEMA.with_metadata(None)), path)
    with pytest.raises(UserError, match="was not written by"):
        read_rollouts(tmp_path, 1)
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is not a readable parquet file"):
        read_rollouts(tmp_path, 1)


def test_a_replay_answers_with_the_whole_stored_step(tmp_path: Path) -> None:
    groups = [one_group(index=3), one_group(index=9)]
    write(tmp_path, 4, groups, advantages=[[0.5, -0.5], None], kept=[True, False])
    seen: list[tuple[int, int, int]] = []
    replay = ReplayRollouts(tmp_path)
    answer = replay.generate(RolloutRequest([], 8, 4, 1, SamplingSettings()), lambda *p: seen.append(p))
    assert answer == [scored.group for scored in groups]
    assert seen == [(8, 4, 4)]
    with pytest.raises(UserError, match="no rollouts of step 5 are stored there; stored steps: 4"):
        replay.generate(RolloutRequest([], 8, 5, 1, SamplingSettings()))


def test_a_replay_takes_no_weights_but_counts_the_hand_overs(tmp_path: Path) -> None:
    write(tmp_path, 1, [one_group()])
    replay = ReplayRollouts(tmp_path)
    stream = iter([("a", None)])
    replay.update_weights(Announcement({}, 3), stream)
    assert replay.weight_version == 3
    assert next(stream, None) is not None


def test_a_replay_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.replay=.*holds no step_\*\.parquet"):
        ReplayRollouts(tmp_path)


def test_the_references_tokens_are_stored_as_texts_with_their_log_probs(tmp_path: Path) -> None:
    scored = ReferenceScores((4, 5), np.array([-0.5, -0.25], np.float32))
    write(tmp_path, 1, [replace(one_group(n=2), references=(scored, None)), one_group(n=1)])
    rows = read_table(tmp_path, 1, ["reference_tokens", "reference_log_probs", "sample"]).to_pylist()
    assert rows == [
        {"sample": 0, "reference_tokens": ["4", " 5"], "reference_log_probs": [-0.5, -0.25]},
        {"sample": 1, "reference_tokens": None, "reference_log_probs": None},
        {"sample": 0, "reference_tokens": None, "reference_log_probs": None},
    ]


def test_a_step_stored_before_the_references_were_is_read_without_them(tmp_path: Path) -> None:
    path = write(tmp_path, 1, [one_group()])
    older = read_table(tmp_path, 1).drop_columns(["reference_tokens", "reference_log_probs"])
    pq.write_table(older.replace_schema_metadata({b"megatron_rlpr.rollouts": b"2"}), path)
    assert read_rollouts(tmp_path, 1) == [one_group().group]
    table = read_table(tmp_path, 1)
    assert table.schema.equals(SCHEMA)
    assert table["reference_tokens"].null_count == 2
    pq.write_table(older, path)
    with pytest.raises(UserError, match="different columns: reference_tokens, reference_log_probs"):
        read_table(tmp_path, 1)


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_the_texts_of_tokens_make_the_text_of_all(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    texts = token_texts(ids, BYTES.decode)
    assert len(texts) == len(ids)
    assert "".join(texts) == BYTES.decode(ids)


def test_a_character_of_several_tokens_stands_at_its_last_one() -> None:
    assert token_texts(list("né€".encode()), lambda ids: bytes(ids).decode(errors="replace")) == [
        *("n", "", "é", "", "", "€")
    ]


def test_infinite_log_probs_survive(tmp_path: Path) -> None:
    scored = one_group(n=1)
    response = Response((7, 8), "x", (-math.inf, -1e-45), "length", 0)
    write(tmp_path, 1, [ScoredGroup(RolloutGroup(scored.group.prompt, (response,)), scored.scores, scored.rewards)])
    assert read_rollouts(tmp_path, 1)[0].responses == (response,)
