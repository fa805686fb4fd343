"""Tables of base probabilities: survive a restart exactly, are shared by runs, and what was made for other data or
settings is made again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.reward.base_table import BaseProbabilityTable, SharedBaseProbabilities, fingerprint
from megatron_rlpr.types import Prompt, UserError

SETTINGS = {"compute_score_name": "mean_exp_log_softmax", "temperature": 1.0}
PROMPTS = [Prompt(index, (1, 2, index), (), f"answer {index}", "unit") for index in (3, 0, 7)]


def filled(path: Path) -> BaseProbabilityTable:
    table = BaseProbabilityTable(SETTINGS, path)
    table.record(PROMPTS[:2], [0.1 + prompt.index / 3 for prompt in PROMPTS[:2]])
    return table


def opened(path: Path, **settings: object) -> BaseProbabilityTable:
    return BaseProbabilityTable({**SETTINGS, **settings}, path).open()


def of_runs(place: Path, run: str, **settings: object) -> BaseProbabilityTable:
    """The table of a run that shares what it computes."""
    everything = {**SETTINGS, **settings}
    return BaseProbabilityTable(everything, place / f"{run}.json", SharedBaseProbabilities(place / "all", everything))


def test_a_table_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "run" / "base.json"
    filled(path).save()
    table = opened(path)
    assert [table.probability(prompt) for prompt in PROMPTS[:2]] == [0.1 + 1.0, 0.1]
    assert table.missing(PROMPTS) == [PROMPTS[2]]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["base.json"], "nothing unfinished is left"


def test_where_nothing_is_stored_everything_is_missing(tmp_path: Path) -> None:
    assert opened(tmp_path / "base.json").missing(PROMPTS) == PROMPTS


def test_a_prompt_that_was_never_scored_has_no_probability(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="7"):
        filled(tmp_path / "base.json").probability(PROMPTS[2])


@pytest.mark.parametrize("change", [{"reference_answer": "another"}, {"token_ids": (1, 2, 4)}])
def test_another_prompt_under_the_same_index_is_missing(change: dict[str, object], tmp_path: Path) -> None:
    table, other = filled(tmp_path / "base.json"), replace(PROMPTS[0], **change)
    assert table.missing([other, PROMPTS[1]]) == [other]
    with pytest.raises(KeyError):
        table.probability(other)
    table.record([other], [0.25])
    assert table.probability(other) == 0.25


def test_the_same_prompt_in_another_row_or_set_is_known(tmp_path: Path) -> None:
    elsewhere = replace(PROMPTS[0], index=99, data_source="other")
    assert filled(tmp_path / "base.json").probability(elsewhere) == 0.1 + 1.0


def test_under_other_settings_everything_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    filled(path).save()
    assert opened(path, temperature=0.6).missing(PROMPTS) == PROMPTS


def test_a_table_of_an_older_form_and_other_settings_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text('{"settings": {"model": "x"}, "entries": {"0": ["0123456789abcdef", 0.5]}}')
    assert opened(path).missing(PROMPTS) == PROMPTS


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": {}, "entries": {"x": "y"}}'])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"base\.json: no readable table .* remove it"):
        BaseProbabilityTable({}, path).open()


@given(st.lists(st.floats(0, 1), max_size=20))
def test_another_rank_gets_every_bit_of_a_table(values: list[float]) -> None:
    prompts = [Prompt(0, (number,), (), "é", "unit") for number in range(len(values))]
    table, other = (BaseProbabilityTable(SETTINGS, "nowhere") for _ in range(2))
    table.record(prompts, values)
    other.take_arrays(*table.arrays())
    assert np.array([other.probability(prompt) for prompt in prompts]).tobytes() == np.array(values).tobytes()
    assert len(other) == len(values)


def test_a_run_finds_what_others_have_computed_under_its_settings(tmp_path: Path) -> None:
    first = of_runs(tmp_path, "first").open(PROMPTS)
    first.record(PROMPTS[:2], [0.1, 1 / 3])
    first.save(PROMPTS[:2])
    second = of_runs(tmp_path, "second").open(PROMPTS)
    assert second.missing(PROMPTS) == [PROMPTS[2]]
    assert second.probability(PROMPTS[1]) == 1 / 3
    assert len(of_runs(tmp_path, "third").open(PROMPTS[1:])) == 1, "no more than its own prompts"
    assert len(of_runs(tmp_path, "other", temperature=0.6).open(PROMPTS)) == 0


def test_a_run_that_goes_on_has_what_it_began_with_and_not_what_others_did_since(tmp_path: Path) -> None:
    """Otherwise other sequences would be computed together than without the kill."""
    of_runs(tmp_path, "killed").open(PROMPTS)
    other = of_runs(tmp_path, "other").open(PROMPTS)
    other.record(PROMPTS, [0.1, 0.2, 0.3])
    other.save(PROMPTS)
    assert of_runs(tmp_path, "killed").open(PROMPTS).missing(PROMPTS) == PROMPTS
    assert of_runs(tmp_path, "new").open(PROMPTS).missing(PROMPTS) == []


def test_what_runs_write_at_the_same_time_is_all_there(tmp_path: Path) -> None:
    settings = dict(SETTINGS)

    def write(number: int) -> None:
        entries = {fingerprint(Prompt(0, (number % 40, row), (), "a", "unit")): row / 7 for row in range(50)}
        SharedBaseProbabilities(tmp_path, settings).keep(entries)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(160)))
    everything = {fingerprint(Prompt(0, (n, row), (), "a", "unit")) for n in range(40) for row in range(50)}
    assert SharedBaseProbabilities(tmp_path, settings).find(everything).keys() == everything
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 40, "nothing is there twice, and nothing unfinished"


@pytest.mark.parametrize("damage", ["digits", "half"])
def test_a_shared_file_that_was_changed_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    shared = SharedBaseProbabilities(tmp_path, SETTINGS)
    shared.keep({fingerprint(PROMPTS[0]): 0.25})
    (path,) = tmp_path.glob("*/*.json")
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.26") if damage == "digits" else text[:-3])
    with pytest.raises(UserError, match=rf"{path.name}.* remove it to have"):
        shared.find({fingerprint(PROMPTS[0])})


def test_a_shared_file_says_what_it_was_made_with(tmp_path: Path) -> None:
    SharedBaseProbabilities(tmp_path, SETTINGS).keep({fingerprint(PROMPTS[0]): 0.25})
    (path,) = tmp_path.glob("*/*.json")
    assert json.loads(path.read_text())["settings"] == SETTINGS
