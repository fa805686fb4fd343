"""tools.pr_quality: areas and their intervals, the figures as text and picture, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.grading.dispatch import grade
from megatron_rlpr.types import UserError
from tools.labelled_responses import LabelledRow
from tools.picture import save_picture
from tools.pr_quality.__main__ import configuration, main
from tools.pr_quality.area import AllPairs, PairsWithin, area_under_curve, interval, numbered, resampled
from tools.pr_quality.measures import LESS_BASE, MEAN_PROBABILITY, RULE_GRADE, SEQUENCE_PROBABILITY, lengths, measures
from tools.pr_quality.plot import picture
from tools.pr_quality.quality import Quality, quality
from tools.pr_quality.scoring import check_sources, grade_task
from tools.pr_quality.table import record, tables

# (score, right, question): few values, so that there are ties.
responses = st.lists(st.tuples(st.sampled_from((-1.0, 0.0, 0.25, 7.0)), st.booleans(), st.integers(0, 3)), min_size=1)


def wins(pairs: Sequence[tuple[float, float]]) -> float:
    """The share of pairs whose first is larger, one half for a tie."""
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else math.nan


@given(responses)
def test_the_area_is_the_share_of_pairs_that_are_in_order(drawn: list[tuple[float, bool, int]]) -> None:
    scores, right = np.array([s for s, _, _ in drawn]), np.array([r for _, r, _ in drawn])
    pairs = [(a, b) for a, right_a, _ in drawn for b, right_b, _ in drawn if right_a and not right_b]
    assert area_under_curve(scores, right) == pytest.approx(wins(pairs), nan_ok=True)


@given(responses, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weight_is_so_many_copies(drawn: list[tuple[float, bool, int]], weights: list[int]) -> None:
    scores, right = np.array([s for s, _, _ in drawn]), np.array([r for _, r, _ in drawn])
    questions = np.array([q for _, _, q in drawn])
    weight = np.array([[weights[q] for q in questions]], dtype=np.float64)
    copies = [row for row in drawn for _ in range(weights[row[2]])]
    pairs = [(a, b) for a, right_a, _ in copies for b, right_b, _ in copies if right_a and not right_b]
    assert AllPairs(scores, right).of(weight)[0] == pytest.approx(wins(pairs), nan_ok=True)
    within = [
        (a, b)
        for a, right_a, of_a in drawn
        for b, right_b, of_b in drawn
        for _ in range(weights[of_a])
        if right_a and not right_b and of_a == of_b
    ]
    assert PairsWithin(scores, right, questions).of(weight)[0] == pytest.approx(wins(within), nan_ok=True)


def test_resamples_draw_whole_questions_and_are_the_same_for_all_measures() -> None:
    questions = numbered(["a", "a", "b", "b", "b", "c"])
    assert questions.tolist() == [0, 0, 1, 1, 1, 2]
    seen = []

    class Counting:
        def of(self, weights: np.ndarray) -> np.ndarray:
            seen.append(weights)
            return weights[:, 0]

    values = resampled([Counting(), Counting()], questions, resamples=50, seed=3)
    assert values.shape == (51, 2)
    assert (values[:, 0] == values[:, 1]).all()
    weights = np.concatenate(seen[::2])
    assert (weights[0] == 1).all()
    for first, second in pairwise(range(6)):
        if questions[first] == questions[second]:
            assert (weights[:, first] == weights[:, second]).all()
    assert (weights[1:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert len(np.unique(weights[1:], axis=0)) > 5


def test_intervals_cover_the_truth_when_responses_of_a_question_depend_on_each_other() -> None:
    """Copies of a response bring no knowledge: only resampling questions sees that."""
    dice = np.random.default_rng(0)
    covered, mistaken, true = 0, 0, 0.5
    for trial in range(40):
        right, scores = np.repeat(dice.random(40) < 0.5, 5), np.repeat(dice.random(40), 5)
        area = AllPairs(scores, right)
        for questions in (np.repeat(np.arange(40), 5), np.arange(200)):
            found = interval(resampled([area], questions, 200, trial)[:, 0])
            inside = found.low <= true <= found.high
            covered += inside and questions[-1] == 39
            mistaken += inside and questions[-1] == 199
    assert covered >= 33
    assert mistaken <= 30


def test_where_a_class_is_missing_there_is_no_area_and_no_interval() -> None:
    found = interval(resampled([AllPairs(np.ones(3), np.ones(3, dtype=bool))], np.arange(3), 20, 0)[:, 0])
    assert all(map(math.isnan, (found.mean, found.low, found.high)))
    lone = interval(np.array([0.7, *[np.nan] * 11, *[0.7] * 9]))
    assert lone.mean == 0.7
    assert math.isnan(lone.low)


def test_measures_are_what_their_names_say() -> None:
    log_probs = [np.log(np.array([0.5, 0.125], dtype=np.float32)), np.log(np.array([0.25], dtype=np.float32))]
    base = [np.log(np.array([0.25, 0.25], dtype=np.float32)), np.log(np.array([0.5], dtype=np.float32))]
    found = {name: values.tolist() for name, values in measures(log_probs, base).items()}
    assert found == {
        MEAN_PROBABILITY: pytest.approx([0.3125, 0.25]),
        LESS_BASE: pytest.approx([0.0625, -0.25]),
        "mean log-prob": pytest.approx([math.log(0.25), math.log(0.25)]),
        "sum log-prob": pytest.approx([math.log(0.0625), math.log(0.25)]),
        "geometric mean": pytest.approx([0.25, 0.25]),
        SEQUENCE_PROBABILITY: pytest.approx([0.0625, 0.25]),
        "min token probability": pytest.approx([0.125, 0.25]),
    }
    assert [values.tolist() for values in lengths(log_probs, [7, 3]).values()] == [[-2, -1], [-7, -3]]


def row(line: int, question: str = "?", correct: bool = True, **fields: object) -> LabelledRow:
    return LabelledRow(line, question, fields.pop("response", "r"), fields.pop("reference", "two"), correct, **fields)  # type: ignore[arg-type]


def some_quality() -> Quality:
    rows = [row(n, f"{n // 2}?", n % 3 > 0, category="maths" if n % 2 else "law") for n in range(12)]
    rows.append(row(12, "alone?", category="sea"))
    values = np.arange(13.0)
    rivals = {LESS_BASE: -values, SEQUENCE_PROBABILITY: values, RULE_GRADE: 0 * values}
    return quality({MEAN_PROBABILITY: values, **rivals}, rows)


def test_figures_are_of_all_of_pairs_within_a_question_and_of_categories() -> None:
    found = some_quality()
    assert (found.overall.responses, found.overall.right, found.overall.questions) == (13, 9, 7)
    # Wrong: 0, 3, 6, 9; every other response of 1..12 is right.
    assert found.overall.areas[MEAN_PROBABILITY].mean == pytest.approx(24 / 36)
    assert found.overall.areas[LESS_BASE].mean == pytest.approx(12 / 36)
    assert found.overall.areas[RULE_GRADE].mean == 0.5
    assert found.within[MEAN_PROBABILITY].mean == pytest.approx(2 / 4)  # (0, 1), (6, 7) in order; (2, 3), (8, 9) not
    assert list(found.categories) == ["law", "maths", "sea"]
    assert math.isnan(found.categories["sea"].areas[MEAN_PROBABILITY].mean)
    difference = found.differences[LESS_BASE]
    assert difference.mean == pytest.approx(12 / 36)
    assert difference.low < difference.mean < difference.high
    same = found.differences[SEQUENCE_PROBABILITY]
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_the_table_shows_every_measure_and_category_and_the_json_is_strict() -> None:
    found = some_quality()
    text = tables(found)
    assert "| mean probability | 0.667 [" in text
    assert "| sequence probability | 0.667 [" in text
    assert "+0.000 [+0.000, +0.000]" in text
    assert "| sea | 1 | 1 (1) | – | – | – | – |" in text
    kept = json.loads(json.dumps(record(found), allow_nan=False))
    assert kept["categories"]["sea"]["areas"][MEAN_PROBABILITY]["mean"] is None
    assert kept["differences"][LESS_BASE]["mean"] == pytest.approx(12 / 36)


def test_the_picture_is_a_png_with_and_without_categories(tmp_path: Path) -> None:
    without = quality({MEAN_PROBABILITY: np.arange(2.0), LESS_BASE: np.arange(2.0)}, [row(1), row(2, correct=False)])
    for found in (some_quality(), without):
        save_picture(picture(found, "title"), tmp_path / "made.png")
        assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")


def test_the_rules_grade_the_letter_where_the_reference_is_an_option_and_else_the_answer() -> None:
    options = ("one", "two")
    graded = {
        "The answer is (B).": row(1, options=options, response="The answer is (B)."),
        "The answer is (A).": row(2, options=options, response="The answer is (A)."),
        "The answer is 7": row(3, reference="7", response="The answer is 7"),
        "The answer is 8": row(4, reference="7", response="The answer is 8"),
    }
    assert [grade(grade_task(one)).accuracy for one in graded.values()] == [1, 0, 1, 0]
    assert grade_task(row(1, data_source="openai/gsm8k")).data_source == "openai/gsm8k"
    with pytest.raises(UserError, match="line 9: data_source 'nobody' has no grader"):
        check_sources([row(1), row(9, data_source="nobody")], Path("r.jsonl"))


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("rollout.n=4", "rollout.n has no effect on scores"),
        ("actor.dtipe=float32", "actor.dtype"),
        ("+reward.format_mode=R1_nothink", "reward.format_mode has no effect on scores"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(override: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        configuration("model", [override])


def test_a_bad_line_ends_it_before_anything_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"question": "?", "response": "!", "reference": "two", "correct": "yes"}')
    assert main(["--model", str(tmp_path), "--responses", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {file}, line 1: correct is 'yes', expected true or false\n"
    assert main(["--model", str(tmp_path), "--responses", str(file), "--resamples", "0"]) == 2
    assert "--resamples=0 must be at least 1" in capsys.readouterr().err
